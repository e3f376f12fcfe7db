"""Benchmark of our lists against the sequence models of RecBole and RecTools, on the split of a finished run.

    python benchmarks/sequence_baselines.py --name ml-100k --rankings artifacts/DATASET/retrieve/FINGERPRINT \\
        --recbole-python RECBOLE/bin/python --rectools-python RECTOOLS/bin/python

``--rankings`` is the folder of a retrieve stage; its split, pinned in the manifest, is exported for both libraries
(``recbole_export.py``): the same rows for training (fit b's), the same valid likes for early stopping and for choosing
a point of the grid, the same test queries (unseen users too, no model has a table of users), one mask (all that the
user rated before the cutoff), one order of ties, one metric code, the whole catalogue. Theirs read likes in order, and
HSTU their times; our ``sequence`` reads all ratings and stars too.

Every model of theirs gets the same grid of four points: width, dropout and learning rate. The one with the best valid
ndcg_at_10 is trained with the further seeds. With several ``--rankings`` each is one seed: its split, our lists on it,
and theirs trained on it with that seed; the grid is searched on the first.

Lists are kept in the work folder (``rankings.parquet``, columns as retrieve's and ``seed``) and found again; a run of
theirs that a cap has ended counts, and the table says so. Every invocation writes the report for all that is in it.
"""

# Shape letters in this file: U users
from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from recbole_export import Asked, read_only_users, write_job
from retrieval_runs import (
    RECBOLE_SIDE,
    RECTOOLS_SIDE,
    Trained,
    console,
    difference,
    machine,
    point_name,
    run_side,
    told,
)

from tripletune.evaluate.metrics import metric_names, score_lists
from tripletune.schemas.query import PURPOSES

REPORT = Path(__file__).with_suffix(".md")
CUTOFFS = (5, 10, 20)
SHOWN = ("hr_at_5", "hr_at_10", "hr_at_20", "ndcg_at_10")
CHOSEN_BY = "ndcg_at_10"
WIDTH_DROPOUT_RATE = ((64, 0.2, 1e-3), (64, 0.5, 1e-3), (128, 0.2, 1e-3), (64, 0.2, 3e-3))
"""The grid, for every model of theirs."""
RECBOLE_BATCH = 256
"""Prefixes; its default of 2,048 makes 25 steps of an epoch that takes minutes on a CPU."""
RECTOOLS = ("eSASRec", "SASRec", "HSTU", "HSTU-time")


@dataclass(frozen=True, slots=True)
class Model:
    """A model of another library."""

    library: str
    name: str

    @property
    def label(self) -> str:
        return f"{self.library} {self.name}"

    def settings(self, point: tuple[float, ...]) -> dict[str, Any]:
        """A point of the grid in the library's words."""
        width, dropout, rate = point
        if self.library == "RecTools":
            return {"lr": rate, "dropout_rate": dropout, "n_factors": width}
        dropouts = {"hidden_dropout_prob": dropout, "attn_dropout_prob": dropout}
        size = {"hidden_size": width, "inner_size": 4 * width, "train_batch_size": RECBOLE_BATCH}
        return {"loss_type": "CE", "learning_rate": rate, **dropouts, **size}


MODELS = {model.label: model for model in (Model("RecBole", "SASRec"), *(Model("RecTools", name) for name in RECTOOLS))}


@dataclass(frozen=True, slots=True)
class Run:
    """One seed: a retrieve stage of ours, and its split."""

    folder: Path
    """In the work folder."""
    rankings: Path
    split: Path
    seed: int

    def asked(self, purpose: str) -> Asked:
        """The queries of the split."""
        return read_only_users(self.split, purpose, unseen=True)


def read_run(rankings: Path, work: Path) -> Run:
    """Find the split of a retrieve stage by its manifest."""
    manifest = json.loads((rankings / "manifest.json").read_text(encoding="utf-8"))
    split = rankings.parents[1] / "split" / manifest["parents"]["split"]
    if not split.is_dir():
        raise SystemExit(f"{rankings} was computed on {split}, which is gone; run split and retrieve again")
    seed = json.loads((split / "manifest.json").read_text(encoding="utf-8"))["ingredients"]["fields"]["seed"]
    return Run(work / f"seed-{seed}", rankings, split, seed)


def train(run: Run, model: Model, point: tuple[float, ...], seed: int, python: Path, cap_minutes: float) -> Trained:
    """Train one point, unless the work folder has it."""
    side = RECBOLE_SIDE if model.library == "RecBole" else RECTOOLS_SIDE
    name = point_name(f"{model.library}-{model.name}", dict(zip("wdr", point, strict=True)))
    out = run.folder / name if seed == run.seed else run.folder / f"{name}-seed-{seed}"
    return run_side(python, side, run.folder / "job", out, model.name, model.settings(point), cap_minutes, seed)


def lists_of(run: Run, trained: Trained, model: Model, seed: int) -> pl.DataFrame:
    """A training's lists as rows of retrieve's ``rankings.parquet``, with ``seed``."""
    parts = []
    for purpose in ("valid", "test"):
        asked = run.asked(purpose)
        top = pl.Series(trained.lists(f"top_{purpose}")).arr.to_list().list.eval(pl.element().filter(pl.element() >= 0))
        parts.append(
            asked.answers.select(
                "user_id",
                purpose=pl.lit(purpose, dtype=PURPOSES),
                retriever=pl.lit(model.label),
                answer="movie_id",
                top=top.cast(pl.List(pl.Int32)),
                seed=pl.lit(seed),
            )
        )
    return pl.concat(parts)


def scores(rankings: pl.DataFrame) -> pl.DataFrame:
    """Metrics of each list, with ``retriever, purpose, seed, user_id``."""
    measured = score_lists(rankings["top"], rankings["answer"], CUTOFFS).select(metric_names(CUTOFFS))
    return rankings.select("retriever", "purpose", "seed", "user_id").hstack(measured)


def valid_of(lists: pl.DataFrame) -> float:
    """Mean valid ndcg_at_10."""
    return float(scores(lists.filter(pl.col("purpose") == "valid"))[CHOSEN_BY].to_numpy().mean())


def report(work: Path) -> str:
    """The tables of every release in the work folder, in Markdown."""
    lines = ["# Sequence models of other libraries", ""]
    lines += ["What is compared and how: the head of `sequence_baselines.py`. ±: standard deviation over seeds."]
    lines += ["Intervals: 95 %, bootstrap over users, each user's mean over the seeds.", ""]
    lines += [f"{machine()}; theirs: {_pinned('recbole')}, {_pinned('rectools')}", ""]
    for folder in sorted(path.parent for path in work.glob("*/rankings.parquet")):
        lines += _release(folder)
    return "\n".join(lines)


def _release(folder: Path) -> list[str]:
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    measured = scores(pl.read_parquet(folder / "rankings.parquet"))
    test = measured.filter(pl.col("purpose") == "test")
    per_user = {
        name: rows.group_by("user_id").agg(pl.col(SHOWN).mean()).sort("user_id")
        for (name,), rows in test.group_by("retriever", maintain_order=True)
    }
    num_users = len(per_user["fused"])
    if any(len(rows) != num_users for rows in per_user.values()):
        raise SystemExit(f"{folder} has lists of different queries; remove it and train again")
    tried = f"{facts['points']} of {len(WIDTH_DROPOUT_RATE)} points of the grid trained"
    lines = [f"## {folder.name}", "", f"{num_users:,} queries; {tried}. `{facts['command']}`", ""]
    lines += [
        "| | valid ndcg_at_10 | " + " | ".join(SHOWN) + " | seeds | |",
        "|---|" + "--:|" * (len(SHOWN) + 2) + "---|",
    ]
    for name in per_user:
        rows = measured.filter(pl.col("retriever") == name).group_by("purpose", "seed").agg(pl.col(SHOWN).mean())
        valid = spread(rows.filter(pl.col("purpose") == "valid")[CHOSEN_BY])
        values = " | ".join(spread(rows.filter(pl.col("purpose") == "test")[metric]) for metric in SHOWN)
        lines.append(f"| {name} | {valid} | {values} | {rows['seed'].n_unique()} | {facts['notes'].get(name, '')} |")
    lines += ["", "The fused list minus each, on test:", "", "| | hr_at_10 | ndcg_at_10 |", "|---|---|---|"]
    for name in per_user:
        if name != "fused":
            pair = per_user["fused"], per_user[name]
            gains = (told(difference(*pair, metric, facts["seed"])) for metric in ("hr_at_10", "ndcg_at_10"))
            lines.append(f"| {name} | " + " | ".join(gains) + " |")
    return [*lines, ""]


def _pinned(library: str) -> str:
    """``rectools 0.19.0``, from the file that its environment is installed from."""
    text = Path(__file__).with_name(f"{library}-requirements.txt").read_text(encoding="utf-8")
    version = re.search(rf"^{library}[^=\n]*==(\S+)", text, re.MULTILINE)
    return f"{library} {version[1]}" if version else library


def spread(values: pl.Series) -> str:
    """``.1234 ± .0012``, the second where there are several seeds."""
    mean = f"{np.mean(values.to_numpy()):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values.to_numpy(), ddof=1):.4f}"


def _note(trained: list[Trained]) -> str:
    """Settings of the point, CPU seconds of training (median), and whether a cap ended a run."""
    settings = ", ".join(f"{key} {value}" for key, value in trained[0].done()["settings"].items())
    seconds = float(np.median([run.curve()["train_cpu_seconds"].max() for run in trained]))
    capped = sum(run.done()["ended"].startswith(("cap", "cut")) for run in trained)
    return (
        f"{settings}; {seconds:.0f} CPU s"
        + f"; {capped} of {len(trained)} ended before they stopped by themselves" * (capped > 0)
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def compare(
    rankings: Annotated[list[Path], typer.Option(help="Folder of a retrieve stage; several: one a seed.")],
    name: Annotated[str, typer.Option(help="What the report calls the release and protocol.")],
    recbole_python: Annotated[Path, typer.Option(help="Python of the environment that has RecBole.")] = Path("python"),
    rectools_python: Annotated[Path, typer.Option(help="Python of the one that has RecTools.")] = Path("python"),
    models: Annotated[str, typer.Option(help="Of theirs, with commas; the table has these.")] = ",".join(MODELS),
    points: Annotated[int, typer.Option(help="Points of the grid to train.", min=1, max=len(WIDTH_DROPOUT_RATE))] = len(
        WIDTH_DROPOUT_RATE
    ),
    further_seeds: Annotated[str, typer.Option(help="Of theirs on the first split, with commas.")] = "",
    work: Annotated[Path, typer.Option(help="Runs are kept and found again here.")] = Path("artifacts/sequence"),
    cap_minutes: Annotated[float, typer.Option(help="CPU minutes for each training of theirs.")] = 15.0,
    out: Annotated[Path, typer.Option(help="The report.")] = REPORT,
) -> None:
    """Train what is missing in the work folder and write the report."""
    folder = work / name
    runs = [read_run(path.resolve(), folder) for path in rankings]
    if len({run.seed for run in runs}) < len(runs):
        raise SystemExit("two of --rankings are of the same seed")
    for run in runs:
        if not (run.folder / "job" / "questions.npz").exists():
            write_job(run.split, run.folder / "job", run.seed, sequences=True)
    first = runs[0]
    seeds = [(first, int(seed)) for seed in further_seeds.split(",") if seed] + [(run, run.seed) for run in runs[1:]]
    found = [
        pl.read_parquet(run.rankings / "rankings.parquet", columns=["user_id", "purpose", "retriever", "answer", "top"])
        .filter(pl.col("purpose").is_in(["valid", "test"]))
        .with_columns(pl.col("top").list.head(max(CUTOFFS)), seed=pl.lit(run.seed))
        for run in runs
    ]
    notes = {}
    for model in (MODELS[label.strip()] for label in models.split(",")):
        python = recbole_python if model.library == "RecBole" else rectools_python
        tried = {
            point: train(first, model, point, first.seed, python, cap_minutes) for point in WIDTH_DROPOUT_RATE[:points]
        }
        lists = {point: lists_of(first, trained, model, first.seed) for point, trained in tried.items()}
        best = max(lists, key=lambda point: valid_of(lists[point]))
        trained = [tried[best], *(train(run, model, best, seed, python, cap_minutes) for run, seed in seeds)]
        found += [lists[best]]
        found += [lists_of(run, one, model, seed) for (run, seed), one in zip(seeds, trained[1:], strict=True)]
        notes[model.label] = _note(trained)
    pl.concat(found).write_parquet(folder / "rankings.parquet")
    options = f"--name {shlex.quote(name)} --models {shlex.quote(models)} --points {points}"
    options += f" --cap-minutes {cap_minutes:g}"
    options += f" --further-seeds {further_seeds}" if further_seeds else ""
    command = f"python benchmarks/sequence_baselines.py {'--rankings FOLDER ' * len(runs)}{options}"
    facts = {"command": command, "notes": notes, "seed": first.seed, "points": points}
    (folder / "facts.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    out.write_text(report(work), encoding="utf-8")
    console.print(out.read_text(encoding="utf-8"), markup=False)


if __name__ == "__main__":
    app()
