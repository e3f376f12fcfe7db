"""Benchmark of the first stage against baselines: RecBole's models where it has them, and ours, on one split.

    python benchmarks/retrieval_baselines.py --recbole-python ENV/bin/python \\
        --name ml-latest-small --release FOLDER --preset configs/ml-latest-small.toml --imdb FOLDER --grid

Same rows for training (fit B: ``graph`` and ``target`` likes of warm users), same valid and test likes, one mask (all
that the user rated before the cutoff), one order of ties, one metric code; whole catalogue; warm users only, as
RecBole's tables of users cannot rank for others. RecBole's models are trained in an environment of their own
(``recbole-requirements.txt``), its points of a grid are chosen by valid ndcg_at_10, test is evaluated once.

Ours come from the stages as a user runs them (``retrieve``'s rankings.parquet), the two further LightGCN rows from
``lightgcn_runs.py``. Ours read the user's newest likes, the valid one included, when they rank for test;
these models of RecBole's have the training rows alone. Its sequence models: ``sequence_baselines.py``.

Every invocation adds a release to the work folder and writes benchmarks/retrieval_baselines.md for all that are in it.
"""

# Shape letters in this file: U users
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from lightgcn_runs import GRID as LIGHTGCN_GRID
from lightgcn_runs import RECOMMENDED, train_ours
from recbole_export import Asked, read_only_users, write_job
from retrieval_runs import (
    LENGTH,
    METRICS,
    RECBOLE_SIDE,
    Ints,
    Trained,
    console,
    difference,
    machine,
    mean,
    point_name,
    run_side,
    run_stages,
    score,
    told,
)

from tripletune.config.presets import load_config

REPORT = Path(__file__).with_suffix(".md")
BASELINES: dict[str, list[dict[str, Any]]] = {
    "Pop": [{}],
    "ItemKNN": [{"k": k} for k in (100, 20, 50, 200)],
    "BPR": [{"learning_rate": rate, "train_batch_size": 4096} for rate in (1e-3, 5e-4, 5e-3)],
    "LightGCN": [RECOMMENDED, *(point for point in LIGHTGCN_GRID if point != RECOMMENDED)],
    "EASE": [{"reg_weight": weight} for weight in (250.0, 100.0, 500.0, 1000.0)],
}
"""Points of a grid, RecBole's default or recommendation first; without ``--grid`` the first alone is trained. RecBole's
Pop counts a film once per batch of likes, so it is not our popularity."""
FURTHER = ("BPR", "softmax")
"""Ours of ``lightgcn_runs`` that no stage's default makes."""
OURS = {
    "popularity": "popularity",
    "rgat": "R-GAT",
    "lightgcn": "LightGCN",
    "ease-plain": "EASE, all likes alike",
    "ease": "EASE, recency-weighted history",
    "sasrec": "SASRec",
    "fused": "fused",
}
NAMES = {"BPR": "LightGCN, BPR", "softmax": "LightGCN, without recency"} | OURS


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: lists for valid and test in the order of the evaluated users."""

    name: str
    valid_UK: Ints
    test_UK: Ints
    seconds: float | None = None
    note: str = ""


def rows_of_recbole(folder: Path) -> list[Row]:
    """Of each model that was trained the point with the best valid ndcg_at_10."""
    rows = []
    asked = read_only_users(_split(folder), "valid")
    for model in BASELINES:
        saved = sorted(path.parent for path in folder.glob(f"recbole/{model}*/top_test.npy"))
        candidates = [_recbole_row(model, Trained(path)) for path in saved if not path.name.endswith("-timing")]
        if candidates:
            rows.append(max(candidates, key=lambda row: mean(score(row.valid_UK, asked), "ndcg_at_10")))
    return rows


def _recbole_row(model: str, run: Trained) -> Row:
    done, last = run.done(), run.curve().row(-1, named=True)
    settings = ", ".join(f"{key} {value}" for key, value in done.get("settings", {}).items())
    ended = f"{last['epoch']} epochs, " + done["ended"] if done["ended"][:3] in ("cap", "cut") else ""
    seconds = done.get("setup_seconds", 0.0) + last["train_cpu_seconds"]
    note = "; ".join(part for part in (settings, ended) if part)
    return Row(f"RecBole {model}", run.lists("top_valid"), run.lists("top_test"), seconds, note)


def rows_of_ours(folder: Path) -> list[Row]:
    """What the retrieve stage ranked, and the further LightGCN fits."""
    asked = {purpose: read_only_users(_split(folder), purpose) for purpose in ("valid", "test")}
    rankings = pl.read_parquet(Path(_facts(folder)["retrieve"]) / "rankings.parquet")
    rows = []
    ranked = set(rankings["retriever"])
    for name, label in OURS.items():
        if name not in ranked:  # EASE, where the catalogue is too large; SASRec, where the fused list has none of it
            continue
        lists = {
            purpose: _lists(rankings.filter(pl.col("retriever") == name, pl.col("purpose") == purpose), part)
            for purpose, part in asked.items()
        }
        rows.append(Row(label, lists["valid"], lists["test"]))
    for variant in FURTHER:
        run = Trained(folder / "ours" / variant)
        seconds = run.curve()["train_cpu_seconds"][-1]
        rows.append(Row(NAMES[variant], run.lists("top_valid"), run.lists("top_test"), seconds))
    return rows


def _lists(rankings: pl.DataFrame, asked: Asked) -> Ints:
    """Film ids (U, K) in the order of the evaluated users, padded with -1."""
    lists = asked.users.join(rankings.select("user_id", "top"), on="user_id", how="left", maintain_order="left")["top"]
    lists_UK = np.full((len(lists), LENGTH), -1, dtype=np.int64)
    length_U = lists.list.len().to_numpy()
    lists_UK[np.arange(LENGTH) < length_U[:, None]] = lists.explode().to_numpy()
    return lists_UK


def report(work: Path) -> str:
    """The tables of every release in the work folder, in Markdown."""
    lines = [
        "# The first stage and its baselines",
        "",
        "What is compared and how: the head of `retrieval_baselines.py`. Intervals: 95 %, bootstrap over viewers.",
        "",
        machine(),
        "",
    ]
    for folder in sorted(path.parent for path in work.glob("*/baselines.json")):
        lines += _release(folder)
    return "\n".join(lines)


def _release(folder: Path) -> list[str]:
    facts = _facts(folder)
    asked = {purpose: read_only_users(_split(folder), purpose) for purpose in ("valid", "test")}
    rows = [*rows_of_recbole(folder), *rows_of_ours(folder)]
    chosen = next(row for row in rows if row.name == NAMES[facts["default"]])
    scores = {row.name: score(row.test_UK, asked["test"]) for row in rows}
    lines = [f"## {folder.name}", "", f"{len(asked['test'].users):,} viewers. CPU s: of the training that is shown,"]
    lines += ["closed forms included, evaluation left out. RecBole's Pop counts a film once per batch of likes."]
    lines += [f"`{facts['command']}`", ""]
    lines += ["| | valid ndcg_at_10 | " + " | ".join(METRICS) + " | CPU s | |", "|---|" + "--:|" * 6 + "---|"]
    for row in rows:
        valid = mean(score(row.valid_UK, asked["valid"]), "ndcg_at_10")
        values = " | ".join(f"{mean(scores[row.name], metric):.4f}" for metric in METRICS)
        seconds = "" if row.seconds is None else f"{row.seconds:.0f}"
        lines.append(f"| {row.name} | {valid:.4f} | {values} | {seconds} | {row.note} |")
    lines += ["", f"The default retriever, {chosen.name}, minus each, on test:", ""]
    lines += ["| | hr_at_10 | ndcg_at_10 |", "|---|---|---|"]
    for row in rows:
        if row is not chosen:
            pair = scores[chosen.name], scores[row.name]
            both = (told(difference(*pair, metric, facts["seed"])) for metric in ("hr_at_10", "ndcg_at_10"))
            lines.append(f"| {row.name} | " + " | ".join(both) + " |")
    return [*lines, ""]


def _facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "baselines.json").read_text(encoding="utf-8")))


def _split(folder: Path) -> Path:
    return Path(_facts(folder)["split"])


def with_every_list(preset: Path, out: Path) -> Path:
    """The preset with ``retrieve.retriever = "fused"``, so that retrieve ranks by all that it can."""
    kept = [line for line in preset.read_text(encoding="utf-8").splitlines() if not line.startswith("retriever =")]
    if "[retrieve]" not in kept:
        kept.append("[retrieve]")
    kept.insert(kept.index("[retrieve]") + 1, 'retriever = "fused"')
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return out


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def compare(
    recbole_python: Annotated[Path, typer.Option(help="Python of the environment that has RecBole.")] = Path("python"),
    name: Annotated[str, typer.Option(help="What the report calls the release.")] = "ml-latest-small",
    release: Annotated[Path, typer.Option(help="MovieLens folder or zip.")] = Path("downloads/ml-latest-small.zip"),
    preset: Annotated[Path, typer.Option(help="Settings of our side, seed and split.")] = Path(
        "configs/ml-latest-small.toml"
    ),
    imdb: Annotated[str, typer.Option(help="Folder with IMDb's dumps, for the R-GAT row; empty: none.")] = "",
    work: Annotated[Path, typer.Option(help="Runs are kept and found again here.")] = Path("artifacts/vs_recbole"),
    cap_minutes: Annotated[float, typer.Option(help="CPU minutes for each of RecBole's trainings.")] = 15.0,
    grid: Annotated[bool, typer.Option(help="Train RecBole on every point, not only on its defaults.")] = False,
    without: Annotated[str, typer.Option(help="Models of RecBole's to skip, with commas.")] = "",
    out: Annotated[Path, typer.Option(help="The report.")] = REPORT,
) -> None:
    """Train what is missing in the work folder and write the report."""
    folder, config = work / name, load_config(preset)
    every = with_every_list(preset, folder / "preset.toml")
    stages = ("ingest", "split", "knowledge", *load_config(every).trained_stages, "retrieve")
    retrieve = run_stages(stages, every, release, folder / "artifacts", imdb)
    split = run_stages(("split",), every, release, folder / "artifacts", imdb)
    facts = {"split": str(split), "retrieve": str(retrieve), "seed": config.seed, "default": config.retrieve.retriever}
    told_release = f"--name {name} --release FOLDER --preset {preset} --cap-minutes {cap_minutes:g}" + " --grid" * grid
    told_release += f" --without {without}" if without else ""
    facts["command"] = f"python benchmarks/retrieval_baselines.py --recbole-python PYTHON {told_release}"
    (folder / "baselines.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    if not (folder / "job" / "questions.npz").exists():
        write_job(split, folder / "job", config.seed, sequences=False)
    for model, points in ((model, BASELINES[model]) for model in BASELINES if model not in without.split(",")):
        for settings in points if grid else points[:1]:
            run = folder / "recbole" / point_name(model, settings)
            run_side(recbole_python, RECBOLE_SIDE, folder / "job", run, model, settings, cap_minutes, config.seed)
    for variant in FURTHER:
        if not (folder / "ours" / variant / "done.json").exists():
            train_ours(split, folder / "ours" / variant, variant, config.seed)
    out.write_text(report(work), encoding="utf-8")
    console.print(out.read_text(encoding="utf-8"), markup=False)


if __name__ == "__main__":
    app()
