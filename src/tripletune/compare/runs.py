"""A run as it is compared: its users' values, the questions behind them, and what it was made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.errors import InputError, MissingArtifactError, UserError
from tripletune.evaluate.per_user import PER_USER, scan_per_user, served_row
from tripletune.flatten import flatten
from tripletune.schemas.query import PURPOSES
from tripletune.store.parquet import parquet_files, scan
from tripletune.store.paths import read_manifest
from tripletune.store.runs import RunRecord, read_run

COMPARED = ("test", "valid")
"""Purposes whose questions are compared, in the order of every table."""
UNIT = ("user_id", "purpose")
"""One observation: a user's value for a purpose is the mean over the user's questions (``evaluate``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScores:
    """One run and the row of it that is compared."""

    name: str
    """As it was given: the run's name, with ``ROOT:`` in front where that was given."""
    root: Path
    record: RunRecord
    row: str
    scores: pl.DataFrame
    """``UNIT``, ``asked`` and the metrics of the row: one line for a user and purpose. ``asked`` spells the user's
    questions, each as cutoff and held-out film."""

    def settings(self) -> dict[str, Any]:
        """The settings that the run was started with, by dotted name."""
        return flatten(self.record.config)

    def ingredients(self, stage: str) -> dict[str, Any]:
        """What the stage's output was made of; empty where the output is not on this machine."""
        if stage not in self.record.fingerprints:
            return {}
        manifest = read_manifest(self.record.paths(self.root).folder(stage))
        return dict(manifest["ingredients"]) if manifest else {}


def read_scores(given: str, artifacts: Path, row: str = "") -> RunScores:
    """Read a run's values of one row.

    Args:
        given: a run's name, or ``ROOT:NAME`` for a run of another artifact root.
        artifacts: the artifact root of runs that are given by name alone.
        row: of the run's tables; empty: what the run serves, which is ``tuned+retriever`` where it has that, else
            ``tuned``.

    Raises:
        MissingArtifactError: there is no such run, or it was not evaluated.
        UserError: the run has no such row.
        InputError: an output is damaged.
    """
    root, _, name = given.rpartition(":")
    folder = Path(root) if root else artifacts
    record = read_run(folder, name)
    paths = record.paths(folder)
    for stage in ("generate", "evaluate"):
        if not paths.is_done(stage):
            raise MissingArtifactError(
                f"run {given} is {record.status} and has no finished '{stage}' output in {paths.folder(stage)}; finish "
                "it with tripletune run and its --config, --movielens, --imdb and --artifacts"
            )
    evaluate, generate = paths.folder("evaluate"), paths.folder("generate")
    per_user = scan_per_user(evaluate).collect()
    rows = per_user["row"].unique().sort().to_list()
    chosen = row or served_row(rows)
    if chosen not in rows:
        raise UserError(f"run {given} has no row {chosen!r}; name one of its rows with --row: {', '.join(rows)}")
    of_row = per_user.filter(pl.col("row") == chosen).drop("row", "unseen")
    scores = of_row.join(_asked(generate), on=UNIT, how="left", validate="1:1")
    if scores["asked"].has_nulls():
        raise InputError(f"{evaluate / PER_USER}: a user has no question in {generate}; run evaluate again")
    kept = [column.name for column in scores if column.null_count() < len(column)]
    return RunScores(name=given, root=folder, record=record, row=chosen, scores=scores.select(kept))


def _asked(generate: Path) -> pl.DataFrame:
    """``UNIT`` and ``asked`` of the valid and test examples."""
    question = pl.format("{}:{}", "cutoff", pl.col("answers").list.first())
    parts = [
        scan(parquet_files(generate, purpose))
        .select("user_id", pl.lit(purpose).cast(PURPOSES).alias("purpose"), question=question)
        .group_by(UNIT)
        .agg(asked=pl.col("question").sort().str.join(" "))
        for purpose in COMPARED
    ]
    return pl.concat(parts).collect()


def same_questions(runs: list[RunScores]) -> pl.DataFrame:
    """``UNIT`` and ``asked`` of the users whom every run was asked the same about, sorted.

    A user whose questions differ in one run is dropped whole: the mean over other questions is another quantity.

    Raises:
        InputError: a run shares none with the first; the message gives the reason.
    """
    first, *others = runs
    shared = first.scores.select(*UNIT, "asked")
    for other in others:
        reason = _other_release(first, other)
        if reason:
            raise InputError(_refusal(first, other, reason))
        both = shared.join(other.scores, on=[*UNIT, "asked"], how="semi", nulls_equal=False)
        if not both.height:
            raise InputError(_refusal(first, other, _other_questions(first, other)))
        shared = both
    return shared.sort(UNIT)


def _refusal(first: RunScores, other: RunScores, reason: str) -> str:
    return f"{first.name} and {other.name} share no questions: {reason}"


def _other_release(first: RunScores, other: RunScores) -> str:
    """Why the users of two runs are other people, or nothing.

    Ids, places and films of two releases can agree by chance. Of one dataset's name are also releases that grew:
    their older questions stay the same.
    """
    stages = [run.record.fingerprints.get("ingest") for run in (first, other)]
    mine, theirs = first.ingredients("ingest"), other.ingredients("ingest")
    files = mine.get("inputs"), theirs.get("inputs")
    if stages[0] == stages[1] or (files[0] and files[0] == files[1]):
        return ""
    datasets = [run.record.dataset for run in (first, other)]
    if mine and theirs and not any(files):
        if mine["fields"] == theirs["fields"]:
            return ""  # the same synthetic release, by other code
        changed = _differing(mine["fields"], theirs["fields"])
        return f"other dataset, two synthetic releases ({changed}); compare runs on one release"
    if datasets[0] == datasets[1]:
        return ""
    return f"other dataset ({datasets[0]}, {datasets[1]}); compare runs on one release"


def _other_questions(first: RunScores, other: RunScores) -> str:
    """Why no question of two runs on one release is the same."""
    both = first.scores.join(other.scores, on=UNIT, how="inner")
    mine, theirs = (
        {name: value for name, value in run.settings().items() if name.startswith("split.")} for run in (first, other)
    )
    changed = _differing(mine, theirs)
    if changed:
        return f"other split ({changed}); give both runs one [split]"
    if not both.height:
        return f"other users are in the rows {first.row} and {other.row}; name a row of all users with --row"
    return (
        f"other cutoffs: {both['user_id'].n_unique():,} users are in both, asked at other places or about other films, "
        "as after new ratings; freeze the queries (split.frozen) to compare such runs"
    )


def _differing(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    names = [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
    return ", ".join(f"{name} {mine.get(name)!r} against {theirs.get(name)!r}" for name in sorted(names))
