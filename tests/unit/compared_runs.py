"""Evaluated runs in an artifact store, as far as ``compare`` reads them: values by user, questions, and manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tripletune.config import RunConfig
from tripletune.html.pages import render_page
from tripletune.schemas.query import PURPOSES
from tripletune.store.files import write_json
from tripletune.store.fingerprint import fingerprint, sha256_file
from tripletune.store.runs import RunRecord, write_run

METRICS = ("hr_at_5", "ndcg_at_5")
ROWS = ("retriever", "tuned")
COLUMNS = {"row_a": pl.String, "row_b": pl.String, "metric": pl.String, "group": pl.String, "difference": pl.Float64}
NUMBERS = {"low": pl.Float64, "high": pl.Float64, "num_viewers": pl.Int64}


def values_of(num_users: int, seed: int, gain: float = 0.0) -> np.ndarray:
    """ndcg_at_5 for each user: the place of a hit among five, or 0; ``gain`` more users have a hit at the first."""
    rng = np.random.default_rng(seed)
    place_U = rng.integers(1, 16, num_users)
    place_U[np.random.default_rng(99).random(num_users) < gain] = 1
    return np.where(place_U <= 5, 1 / np.log2(place_U + 1), 0.0)


def write_compared(
    root: Path,
    name: str,
    values: dict[str, np.ndarray],
    *,
    dataset: str = "ml",
    first_user: int = 1,
    shift: int = 0,
    held_out: int = 1,
    rows: tuple[str, ...] = ROWS,
    files: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
) -> RunRecord:
    """Write a completed run.

    Args:
        values: ndcg_at_5 by purpose of every user, from ``first_user`` on, in every row but ``retriever``, which has 0.
        shift: added to the cutoffs.
        held_out: questions of a user for each purpose.
        files: checksums of ingest's inputs; None: those of one release.
        config: settings apart from the defaults, by section.
    """
    settings = RunConfig.model_validate({"dataset": dataset, **(config or {})}).model_dump(mode="json")
    inputs = {"movielens/ratings.csv": "a" * 64} if files is None else files
    fields = {"split": settings["split"], "generate": settings["prompt"], "evaluate": settings["evaluate"]}
    ingredients: dict[str, dict[str, Any]] = {"ingest": {"inputs": inputs, "fields": {"seed": settings["seed"]}}}
    parents = {"split": ["ingest"], "generate": ["split"], "evaluate": ["generate"]}
    prints: dict[str, str] = {}
    for stage in ("ingest", *parents):
        given = ingredients.setdefault(stage, {"fields": fields.get(stage, {}), "inputs": {}})
        given["parents"] = {parent: prints[parent] for parent in parents.get(stage, [])}
        # values differ between runs as if finetune and rank had been there
        extra = {"values": {"sum": sum(float(of.sum()) for of in values.values())}} if stage == "evaluate" else {}
        prints[stage] = fingerprint(stage, {**given, **extra})
    record = RunRecord(
        name=name, dataset=dataset, status="completed", started="2026-01-01T00:00:00Z", config=settings,
        fingerprints=prints, stages=dict.fromkeys(prints, "made"),
    )  # fmt: skip
    paths = record.paths(root)
    for purpose, values_U in values.items():
        write_questions(paths.folder("generate") / purpose, first_user, len(values_U), shift, held_out)
    for purpose in {"valid", "test"} - values.keys():
        write_questions(paths.folder("generate") / purpose, first_user, 0, shift, held_out)
    of_rows = {row: {name: of * (row != "retriever") for name, of in values.items()} for row in rows}
    paths.folder("evaluate").mkdir(parents=True, exist_ok=True)
    write_rows(paths.folder("evaluate"), of_rows, first_user)
    for stage in prints:
        _publish(paths.folder(stage), stage, ingredients[stage])
    write_run(root, record)
    return record


def write_rows(folder: Path, values: dict[str, dict[str, np.ndarray]], first_user: int = 1) -> None:
    """evaluate's values by user: ndcg_at_5 by row and purpose."""
    parts = [_row(row, purpose, first_user, of) for row, by in values.items() for purpose, of in by.items()]
    pl.concat(parts).write_parquet(folder / "per_viewer.parquet")


def _row(row: str, purpose: str, first_user: int, values_U: np.ndarray) -> pl.DataFrame:
    users = np.arange(first_user, first_user + len(values_U))
    frame = pl.DataFrame({"user_id": users, "hr_at_5": (values_U > 0).astype(float), "ndcg_at_5": values_U})
    labels = {"purpose": pl.lit(purpose).cast(PURPOSES), "unseen": pl.lit(False), "row": pl.lit(row)}
    return frame.with_columns(pl.col("user_id").cast(pl.Int32), **labels)


def write_questions(folder: Path, first_user: int, num_users: int, shift: int = 0, held_out: int = 1) -> None:
    """As many of generate's shards as ``compare`` reads, of one purpose."""
    users = range(first_user, first_user + num_users)
    asked = [(user, 10 + shift + number) for user in users for number in range(held_out)]
    frame = pl.DataFrame(
        {
            "user_id": [user for user, _ in asked],
            "cutoff": [cutoff for _, cutoff in asked],
            "answers": [[user * 7 % 50 + cutoff] for user, cutoff in asked],
        },
        schema={"user_id": pl.Int32, "cutoff": pl.Int32, "answers": pl.List(pl.Int32)},
    )
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(folder / "shard-000.parquet")


def _publish(folder: Path, stage: str, ingredients: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in folder.rglob("*.parquet")
    }
    write_json(folder / "manifest.json", {"stage": stage, "files": files, "ingredients": ingredients})


def write_evaluated(
    root: Path, name: str, seed: int, gain: float, started: str, num_users: int = 300, **given: Any
) -> RunRecord:
    """A compared run whose evaluate output has what a page is made from."""
    values_U = values_of(num_users, seed, gain)
    record = write_compared(root, name, {"test": values_U, "valid": values_U}, **given)
    record = record.model_copy(update={"started": started, "commit": "c0ffee" * 6, "dirty": name == "later"})
    write_run(root, record)
    folder = record.paths(root).folder("evaluate")
    html = render_page(
        "templates/report.html.j2", dataset="ml", facts=[], confidence=0.95, headlines=[], verdicts=[], contents={}
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    line = {"row_a": "tuned", "row_b": "untuned", "metric": "ndcg_at_5", "group": "all", "difference": 0.25}
    pl.DataFrame([{**line, "low": 0.1, "high": 0.4, "num_viewers": 9}], schema={**COLUMNS, **NUMBERS}).write_parquet(
        folder / "comparisons.parquet"
    )
    means = {"row": pl.String, "group": pl.String, "metric": pl.String, "value": pl.Float64, **NUMBERS}
    pl.DataFrame(schema=means).write_parquet(folder / "metrics.parquet")
    write_json(folder / "metrics.json", {"tuned_ndcg_at_5": float(values_U.mean())})
    return record
