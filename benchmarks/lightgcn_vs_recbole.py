"""LightGCN against RecBole's: seconds of training to the same valid ndcg_at_10, and the test metrics of both.

    python benchmarks/lightgcn_vs_recbole.py --recbole-python ENV/bin/python \\
        --name ml-latest-small --release FOLDER --preset configs/ml-latest-small.toml --grid

RecBole (Zhao et al., CIKM 2021) trains LightGCN as published: BPR, one propagation over the whole graph for every small
batch. It runs in an environment of its own (``recbole-requirements.txt``), with its own early stopping. Both sides get
the same rows (fit B: ``graph`` and ``target`` likes of warm users), the same valid and test likes, the same mask (all
that the user rated before the cutoff), the same order of ties and the same metric code.

Three of ours are compared with it, to separate three changes: ``BPR`` (the published loss, in large
steps), ``softmax`` (the fast loss, all likes alike) and ``softmax, recency`` (the default). Each is ranked twice on
test: as it is used, with a user's vector from everything before the test like, the valid like included, without
retraining; and with vectors from the training rows alone, which is all that RecBole's table of users has seen.

Training seconds leave evaluation out on both sides. RecBole's come from the timing run of a few epochs, which should be
alone on the machine, times the number of epochs; the long run may then share it. Every invocation adds a release to the
work folder and writes benchmarks/lightgcn_vs_recbole.md for all that are in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer
from lightgcn_runs import GRID, OURS, RECOMMENDED, train_ours
from recbole_export import Asked, read_only_users, write_job
from retrieval_runs import (
    RECBOLE_SIDE,
    Trained,
    console,
    difference,
    machine,
    metric_table,
    point_name,
    run_side,
    run_stages,
    score,
    told,
)

from tripletune.config.presets import load_config
from tripletune.models.training.interactions import read_interactions

REPORT = Path(__file__).with_suffix(".md")
TIMED_EPOCHS, TIMING = 3, "-timing"
EARLY = "early stopping"
"""Value in a run's file when RecBole itself ended the training."""


def recbole_runs(folder: Path) -> list[Trained]:
    """RecBole's LightGCN at every point that was trained."""
    saved = sorted(path.parent for path in folder.glob("recbole/LightGCN-*/top_test.npy"))
    return [Trained(path) for path in saved if not path.name.endswith(TIMING)]


def best_recbole(folder: Path) -> Trained:
    """The one with the best valid ndcg_at_10 under our mask."""
    return max(recbole_runs(folder), key=lambda run: float(run.best()["valid_ndcg_at_10"]))


def timing_run(run: Trained) -> Trained:
    """A few epochs of the same, for the seconds of one."""
    return Trained(run.folder.with_name(run.folder.name + TIMING))


def report(work: Path) -> str:
    """The tables of every release in the work folder, in Markdown."""
    lines = [
        "# LightGCN against RecBole's LightGCN",
        "",
        "What is compared and how: the head of `lightgcn_vs_recbole.py`. Intervals: 95 %, bootstrap over viewers.",
        "Seconds are of training alone; on a machine shared with other work, CPU seconds are the steadier ones.",
        "",
        machine(),
    ]
    folders = sorted(path.parent for path in work.glob("*/asked.json"))
    versions = Trained(next(iter(sorted(folders[0].glob("recbole/*"))))).done().get("versions", {})
    lines += ["RecBole 1.2.1 with " + ", ".join(f"{name} {version}" for name, version in versions.items())]
    lines.append("")
    for folder in folders:
        lines += _release(folder)
    return "\n".join(lines)


def _release(folder: Path) -> list[str]:
    facts = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    theirs, ours = best_recbole(folder), {variant: Trained(folder / "ours" / variant) for variant in OURS}
    timed = timing_run(theirs).curve().row(-1, named=True)
    epoch = {kind: timed[kind] / timed["epoch"] for kind in ("train_seconds", "train_cpu_seconds")}
    return [
        f"## {folder.name}",
        "",
        f"{facts['likes']:,} training likes of {facts['viewers']:,} viewers, {facts['films']:,} films.",
        f"`{facts['command']}`",
        "",
        *_speed(theirs, ours, epoch, facts["grid"]),
        "",
        *_quality(theirs, ours, read_only_users(Path(facts["split"]), "test"), facts["seed"]),
        "",
    ]


def _speed(theirs: Trained, ours: dict[str, Trained], epoch: dict[str, float], grid: str) -> list[str]:
    best, done, num_epochs = theirs.best(), theirs.done(), len(theirs.curve())
    goal = float(best["valid_ndcg_at_10"])
    seconds, cpu = (epoch[kind] * best["epoch"] for kind in ("train_seconds", "train_cpu_seconds"))
    own, timed, timed_cpu = (
        best["train_cpu_seconds"] / best["epoch"],
        epoch["train_seconds"],
        epoch["train_cpu_seconds"],
    )
    threads = {run.done()["threads"] for run in (timing_run(theirs), *ours.values())}
    lines = [
        f"RecBole: {json.dumps(done['settings'])}, {grid}. {num_epochs} epochs ({done['ended']}), the best was number "
        f"{best['epoch']}. An epoch takes {timed:.2f} s ({timed_cpu:.2f} CPU s) in the timing run, {own:.2f} CPU s in "
        f"the long one. Threads of the timed runs: {', '.join(str(number) for number in sorted(threads))}.",
        "",
        "| until valid ndcg_at_10 of | | best valid | steps | s | CPU s | times as fast | in CPU s | s to own best |",
        "|---|---|" + "--:|" * 7,
        f"| {goal:.4f}, RecBole's best | RecBole, BPR | {goal:.4f} | {best['epoch']} epochs | {seconds:.1f} "
        f"| {cpu:.1f} | 1 | 1 | {seconds:.1f} |",
        *_reach(ours, goal, seconds, cpu),
    ]
    if not done["ended"].startswith(EARLY):
        lines += _extrapolated(theirs.curve(), ours, epoch)
    return lines


def _extrapolated(curve: pl.DataFrame, ours: dict[str, Trained], epoch: dict[str, float]) -> list[str]:
    """Rows for our best valid ndcg_at_10, which RecBole had not reached when it was cut."""
    goal = max(float(run.best()["valid_ndcg_at_10"]) for run in ours.values())
    epochs = epochs_until(curve, goal)
    row, further = f"| {goal:.4f}, our best | RecBole, BPR | | not foreseeable | | | | | |", []
    if epochs:
        seconds, cpu = (epoch[kind] * epochs for kind in ("train_seconds", "train_cpu_seconds"))
        steps = f"{epochs} epochs, extrapolated"
        row = f"| {goal:.4f}, our best | RecBole, BPR | | {steps} | {seconds:.0f} | {cpu:.0f} | 1 | 1 | |"
        further = _reach(ours, goal, seconds, cpu)
    return [
        row,
        *further,
        "",
        "RecBole had not stopped when it was cut, so its best is not its last word. The extrapolated epochs lie on the "
        "line through the last third of its curve; curves bend down, so it would need more.",
    ]


def epochs_until(curve: pl.DataFrame, goal: float) -> int | None:
    """The epoch at which the line through the last third of a curve reaches ``goal``; None if it does not rise."""
    last = curve.tail(max(2, len(curve) // 3))
    if len(last) < 2:
        return None
    slope, start = np.polyfit(last["epoch"].to_numpy(), last["valid_ndcg_at_10"].to_numpy(), 1)
    is_rising = slope > 1e-9  # a flat curve's slope is rounding
    return max(int(np.ceil((goal - start) / slope)), len(curve)) if is_rising else None


def _reach(ours: dict[str, Trained], goal: float, seconds: float, cpu: float) -> list[str]:
    lines = []
    for name, run in ours.items():
        own, reached = run.best(), run.first_at(goal)
        there = "never | | | | "
        if reached:
            own_seconds, own_cpu = reached["train_seconds"], reached["train_cpu_seconds"]
            there = f"{reached['step']} | {own_seconds:.2f} | {own_cpu:.2f} | {seconds / own_seconds:.0f} "
            there += f"| {cpu / own_cpu:.0f} "
        lines.append(f"| | {name} | {own['valid_ndcg_at_10']:.4f} | {there}| {own['train_seconds']:.2f} |")
    return lines


def _quality(theirs: Trained, ours: dict[str, Trained], asked: Asked, seed: int) -> list[str]:
    rows = {"RecBole, BPR": score(theirs.lists(), asked)}
    for told_rows, lists in (("training rows alone", "top_test_trained_rows"), ("as it is used", "top_test")):
        rows |= {f"{name}; {told_rows}": score(run.lists(lists), asked) for name, run in ours.items()}
    (_, base), *others = rows.items()
    lines = [f"Test, {len(asked.users):,} viewers:", "", *metric_table(rows), "", "Ours minus RecBole's:", ""]
    lines += ["| | hr_at_10 | ndcg_at_10 |", "|---|---|---|"]
    for name, scores in others:
        both = (told(difference(scores, base, metric, seed)) for metric in ("hr_at_10", "ndcg_at_10"))
        lines.append(f"| {name} | " + " | ".join(both) + " |")
    return lines


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def compare(
    recbole_python: Annotated[Path, typer.Option(help="Python of the environment that has RecBole.")] = Path("python"),
    name: Annotated[str, typer.Option(help="What the report calls the release.")] = "ml-latest-small",
    release: Annotated[Path, typer.Option(help="MovieLens folder or zip.")] = Path("downloads/ml-latest-small.zip"),
    preset: Annotated[Path, typer.Option(help="Where seed and split come from.")] = Path(
        "configs/ml-latest-small.toml"
    ),
    work: Annotated[Path, typer.Option(help="Runs are kept and found again here.")] = Path("artifacts/vs_recbole"),
    cap_minutes: Annotated[float, typer.Option(help="CPU minutes for each of RecBole's trainings.")] = 60.0,
    grid: Annotated[bool, typer.Option(help="Train RecBole on its own tuning range, not only as recommended.")] = False,
    patience: Annotated[int, typer.Option(help="Epochs without a better one before RecBole stops; its default.")] = 10,
    out: Annotated[Path, typer.Option(help="The report.")] = REPORT,
    only: Annotated[str, typer.Option(hidden=True, help="One of ours, in this process.")] = "",
) -> None:
    """Train what is missing in the work folder and write the report."""
    folder, seed = work / name, load_config(preset).seed
    split = run_stages(("ingest", "split"), preset, release, folder / "artifacts")
    if only:
        train_ours(split, folder / "ours" / only, only, seed)
        return
    if not (folder / "job").exists():
        write_job(split, folder / "job", seed, sequences=False)
    for settings in GRID if grid else [RECOMMENDED]:
        run = folder / "recbole" / point_name("LightGCN", settings)
        patient = settings | {"stopping_step": patience}
        run_side(recbole_python, RECBOLE_SIDE, folder / "job", run, "LightGCN", patient, cap_minutes, seed)
    best = best_recbole(folder)
    few = best.done()["settings"] | {"epochs": TIMED_EPOCHS}
    run_side(recbole_python, RECBOLE_SIDE, folder / "job", timing_run(best).folder, "LightGCN", few, cap_minutes, seed)
    for variant in OURS:
        if not (folder / "ours" / variant / "done.json").exists():
            same = ["--name", name, "--release", str(release), "--preset", str(preset), "--work", str(work)]
            console.print(f"ours: {variant}")
            subprocess.run([sys.executable, __file__, *same, "--only", variant], check=True)
    likes = read_interactions(split)
    facts = {"split": str(split), "seed": seed, "films": likes.num_movies, "viewers": likes.fits["b"].num_viewers}
    facts["likes"] = likes.fits["b"].user_E.numel()
    facts["grid"] = f"the best of {len(recbole_runs(folder))} tried, by valid"
    told_release = f"--name {name} --release FOLDER --preset {preset}" + " --grid" * grid
    told_release += f" --cap-minutes {cap_minutes:g} --patience {patience}"
    facts["command"] = f"python benchmarks/lightgcn_vs_recbole.py --recbole-python PYTHON {told_release}"
    (folder / "asked.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    out.write_text(report(work), encoding="utf-8")
    console.print(out.read_text(encoding="utf-8"), markup=False)


if __name__ == "__main__":
    app()
