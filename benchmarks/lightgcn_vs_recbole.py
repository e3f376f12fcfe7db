"""LightGCN against RecBole's: seconds of training to the same valid ndcg_at_10, and the test metrics of both.

    python benchmarks/lightgcn_vs_recbole.py --recbole-python ENV/bin/python \\
        --name ml-latest-small --release FOLDER --preset configs/ml-latest-small.toml --grid

RecBole (Zhao et al., CIKM 2021) trains LightGCN as published: BPR, one propagation over the whole graph for every small
batch. It runs in an environment of its own (``recbole-requirements.txt``), with its own early stopping. Both sides get
the same rows (fit B: ``graph`` and ``target`` likes of warm viewers), the same valid and test likes, the same mask (all
that the viewer rated before the cutoff), the same order of ties and the same metric code.

Three of ours stand beside it, because three things are changed at once otherwise: ``BPR`` (the published loss, in large
steps), ``softmax`` (the fast loss, all likes alike) and ``softmax, recency`` (the default). Each is ranked twice on
test: as it is used, with a viewer's vector from everything before the test like, the valid like included, without
retraining; and with vectors from the training rows alone, which is all that RecBole's table of users knows.

Training seconds leave evaluation out on both sides. RecBole's come from the timing run of a few epochs, which should be
alone on the machine, times the number of epochs; the long run may then share it. Every invocation adds a release to the
work folder and writes benchmarks/lightgcn_vs_recbole.md for all that are in it.
"""

# Shape letters in this file: U viewers, M films
from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import torch
import typer
from recbole_export import Asked, read_asked, training_likes, write_job
from retrieval_runs import (
    Ints,
    Trained,
    console,
    difference,
    machine,
    metric_table,
    point_name,
    run_recbole,
    run_stages,
    score,
    told,
)

from tripletune.config import LightGCNConfig
from tripletune.graph.interactions import read_interactions
from tripletune.graph.lightgcn import POOL_POWER
from tripletune.graph.lightgcn_fit import LightGCNTrainer
from tripletune.graph.training import judge
from tripletune.presets import load_config
from tripletune.retrieve.specialists import Catalogue, LightGCNFit, Likes
from tripletune.retrieve.topk import Ragged, product_blocks, top_columns

REPORT = Path(__file__).with_suffix(".md")
LENGTH = 20
TIMED_EPOCHS, TIMING = 3, "-timing"
RECOMMENDED = {"learning_rate": 0.002, "n_layers": 3, "reg_weight": 1e-4, "train_batch_size": 4096}
"""RecBole's own result of tuning LightGCN on ML-1M (results/general/ml-1m.md of RecBole-GNN)."""
GRID = [
    RECOMMENDED | {"n_layers": layers, "learning_rate": rate} for layers, rate in product((3, 2), (0.002, 0.005, 0.001))
]
"""The layers and learning rates that it was tuned over."""
OURS = {
    "BPR": LightGCNConfig(
        loss="bpr", recency_half_life=0, temperature=1.0, learning_rate=0.1, weight_decay=0, max_steps=400
    ),
    "softmax": LightGCNConfig(recency_half_life=0),
    "softmax, recency": LightGCNConfig(),
}
"""The published loss has no temperature; its learning rate and decay were chosen on valid, see the report."""


def train_ours(split: Path, out: Path, variant: str, seed: int) -> None:
    """Train fit B by the trainer's own steps and rules; evaluate after every step, so that the curve is fine.

    The best step is still chosen among the trainer's own evaluations, one in ``eval_every``.
    """
    settings = OURS[variant]
    interactions = read_interactions(split)
    started = time.perf_counter()
    trainer = LightGCNTrainer(interactions.fits["b"], interactions.num_movies, settings, 2 * seed + 1)
    setup, wall, cpu, best, worse, curve = time.perf_counter() - started, 0.0, 0.0, -1.0, 0, []
    for step in range(1, settings.max_steps + 1):
        started, started_cpu = time.perf_counter(), time.process_time()
        trainer.step()
        wall, cpu = wall + time.perf_counter() - started, cpu + time.process_time() - started_cpu
        ndcg = judge(trainer, interactions.valid)
        curve.append({"step": step, "train_seconds": wall, "train_cpu_seconds": cpu, "valid_ndcg_at_10": ndcg})
        if step % settings.eval_every:
            continue
        if ndcg > best:
            best, worse, tensors = ndcg, 0, trainer.export()
        else:
            worse += 1
        if worse == settings.patience:
            break
    catalogue = Catalogue(interactions.movie_ids_M, seed)
    in_order = {name: tensor[torch.from_numpy(catalogue.order_M)] for name, tensor in tensors.items()}
    fit = LightGCNFit(
        catalogue=catalogue,
        pool_vectors_MD=in_order["pool_vectors"],
        bias_M=in_order["movie_bias"],
        movie_vectors_MD=in_order["movie_vectors"],
        half_life=settings.recency_half_life,
        power=POOL_POWER,
    )
    asked, valid = read_asked(split, "test"), read_asked(split, "valid")
    trained = training_likes(interactions).with_columns(age=pl.int_range(pl.len(), 0, -1).over("user_id") - 1)
    trained = trained.join(asked.users, on="user_id")
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "top_valid.npy", rank(fit, valid, valid.history))
    np.save(out / "top_test.npy", rank(fit, asked, asked.history))
    np.save(out / "top_test_trained_rows.npy", rank(fit, asked, trained))
    pl.DataFrame(curve).write_ndjson(out / "curve.jsonl")
    done = {"settings": settings.model_dump(mode="json"), "seed": seed, "setup_seconds": setup}
    (out / "done.json").write_text(json.dumps(done | {"threads": torch.get_num_threads()}) + "\n", encoding="utf-8")


def rank(fit: LightGCNFit, asked: Asked, history: pl.DataFrame) -> Ints:
    """Film ids (U, 20) for viewers with these likes (``row, movie_id, age``), under the one mask."""
    num_viewers = len(asked.users)
    history = history.sort("row", "age")
    likes = Likes(*(history[column].to_numpy().astype(np.int64) for column in ("row", "movie_id", "age")))
    columns = fit.catalogue.columns(asked.seen["movie_id"].to_numpy())
    masked = Ragged.from_pairs(asked.seen["row"].to_numpy().astype(np.int64), columns, num_viewers)
    blocks = product_blocks(fit.pool(likes, num_viewers), fit.movie_vectors_MD, fit.bias_M)
    return fit.catalogue.movie_ids(top_columns(blocks, num_viewers, masked, LENGTH)[0])


def best_recbole(folder: Path) -> Trained:
    """RecBole's run with the best valid ndcg_at_10 under our mask."""
    runs = [Trained(path) for path in sorted(folder.glob("recbole/LightGCN-*")) if not path.name.endswith(TIMING)]
    return max(runs, key=lambda run: float(run.best()["valid_ndcg_at_10"]))


def timing_run(run: Trained) -> Trained:
    """A few epochs of the same, for the seconds of one."""
    return Trained(run.folder.with_name(run.folder.name + TIMING))


def report(work: Path, command: str) -> str:
    """The tables of every release in the work folder, in Markdown."""
    lines = [
        "# LightGCN against RecBole's LightGCN",
        "",
        "What is compared and how: the head of `lightgcn_vs_recbole.py`. Intervals: 95 %, bootstrap over viewers.",
        "",
        machine(),
    ]
    folders = sorted(path.parent for path in work.glob("*/asked.json"))
    versions = Trained(next(iter(sorted(folders[0].glob("recbole/*"))))).done().get("versions", {})
    lines += ["RecBole 1.2.1 with " + ", ".join(f"{name} {version}" for name, version in versions.items())]
    lines += [f"`{command}`", ""]
    for folder in folders:
        lines += _release(folder)
    return "\n".join(lines)


def _release(folder: Path) -> list[str]:
    facts = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    asked, seed = read_asked(Path(facts["split"]), "test"), facts["seed"]
    theirs = best_recbole(folder)
    ours = {variant: Trained(folder / "ours" / variant) for variant in OURS}
    best, done = theirs.best(), theirs.done()
    goal = float(best["valid_ndcg_at_10"])
    epoch = (
        timing_run(theirs)
        .curve()
        .select(pl.col("train_seconds", "train_cpu_seconds").last() / pl.len())
        .row(0, named=True)
    )
    seconds, cpu = epoch["train_seconds"] * best["epoch"], epoch["train_cpu_seconds"] * best["epoch"]
    lines = [
        f"## {folder.name}",
        "",
        f"{facts['likes']:,} training likes of {facts['viewers']:,} viewers, {facts['films']:,} films; "
        f"{len(asked.users):,} viewers asked. RecBole: {json.dumps(done.get('settings', {}))}, {facts['grid']}; "
        f"it ran {len(theirs.curve())} epochs ({done['ended']}), the best was number {best['epoch']}; "
        f"{epoch['train_seconds']:.2f} s and {epoch['train_cpu_seconds']:.2f} CPU s per epoch in the timing run "
        f"(in the long run {best['train_seconds'] / best['epoch']:.2f} and "
        f"{best['train_cpu_seconds'] / best['epoch']:.2f}).",
        "",
        f"Training until valid ndcg_at_10 = {goal:.4f}, RecBole's best:",
        "",
        "| | best valid ndcg_at_10 | steps | seconds | CPU s | times as fast | seconds to its own best | setup s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        f"| RecBole, BPR | {goal:.4f} | {best['epoch']} epochs | {seconds:.1f} | {cpu:.1f} | 1 | {seconds:.1f} "
        f"| {done.get('setup_seconds', 0):.1f} |",
    ]
    for name, run in ours.items():
        own, reached, setup = run.best(), run.first_at(goal), run.done()["setup_seconds"]
        there = "not reached | | | "
        if reached:
            there = f"{reached['step']} | {reached['train_seconds']:.2f} | {reached['train_cpu_seconds']:.2f} "
            there += f"| {seconds / reached['train_seconds']:.0f}"
        lines.append(f"| {name} | {own['valid_ndcg_at_10']:.4f} | {there} | {own['train_seconds']:.2f} | {setup:.2f} |")
    base = score(theirs.lists(), asked)
    rows = {"RecBole": base}
    rows |= {
        f"{name}; training rows alone": score(run.lists("top_test_trained_rows"), asked) for name, run in ours.items()
    }
    rows |= {f"{name}; as it is used": score(run.lists(), asked) for name, run in ours.items()}
    lines += ["", "Test:", "", *metric_table(rows), "", "Ours minus RecBole's:", ""]
    lines += ["| | hr_at_10 | ndcg_at_10 |", "|---|---|---|"]
    for name, scores in rows.items():
        if name != "RecBole":
            both = (told(difference(scores, base, metric, seed)) for metric in ("hr_at_10", "ndcg_at_10"))
            lines.append(f"| {name} | " + " | ".join(both) + " |")
    return [*lines, ""]


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
    cap_minutes: Annotated[float, typer.Option(help="For each of RecBole's trainings.")] = 60.0,
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
        run_recbole(recbole_python, folder / "job", run, "LightGCN", patient, cap_minutes, seed)
    best = best_recbole(folder)
    few = best.done()["settings"] | {"epochs": TIMED_EPOCHS}
    run_recbole(recbole_python, folder / "job", timing_run(best).folder, "LightGCN", few, cap_minutes, seed)
    for variant in OURS:
        if not (folder / "ours" / variant / "done.json").exists():
            same = ["--name", name, "--release", str(release), "--preset", str(preset), "--work", str(work)]
            console.print(f"ours: {variant}")
            subprocess.run([sys.executable, __file__, *same, "--only", variant], check=True)
    likes = read_interactions(split)
    facts = {"split": str(split), "seed": seed, "films": likes.num_movies, "viewers": likes.fits["b"].num_viewers}
    facts["likes"] = likes.fits["b"].viewer_E.numel()
    facts["grid"] = f"the best of {len(GRID)} by valid" if grid else "as RecBole recommends for ML-1M"
    (folder / "asked.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    told_release = f"--name {name} --release FOLDER --preset {preset}" + (" --grid" if grid else "")
    told_release += f" --patience {patience}"
    command = f"python benchmarks/lightgcn_vs_recbole.py --recbole-python PYTHON {told_release}"
    out.write_text(report(work, command), encoding="utf-8")
    console.print(out.read_text(encoding="utf-8"), markup=False)


if __name__ == "__main__":
    app()
