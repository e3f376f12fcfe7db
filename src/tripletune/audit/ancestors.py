"""Rule 4 across runs: no answer of this run's valid or test was ever trained on by an adapter's ancestors.

A chain of warm starts remembers earlier runs' examples, and this run's split may hold out what those were trained on: a
film that the user rated again, a raised share of unseen users, a frozen set of queries that is older than the chain.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tripletune.audit.leaks import MAX_PER_KIND, Leak, to_leaks
from tripletune.audit.rules import Finding
from tripletune.errors import InputError
from tripletune.schemas.finetune import TRAINED_EXAMPLES, TRAINED_EXAMPLES_NAME
from tripletune.store.parquet import parquet_files, read_rows, scan

_HELD_OUT = ("valid", "test")


def ancestor_leaks(finetuned: Path, shards: Path, *, limit: int | None = MAX_PER_KIND) -> list[Leak]:
    """Compare what an adapter and its ancestors were trained on with a run's valid and test examples.

    Args:
        finetuned: finetune output with ``TRAINED_EXAMPLES``.
        shards: the run's generate folder.
        limit: leaks of one kind; None: all.

    Returns:
        Leaks of rule 4: examples of unseen users who were trained on, and examples whose answer was.

    Raises:
        InputError: there are no shards, or the record cannot be read.
    """
    trained = read_rows(finetuned / TRAINED_EXAMPLES_NAME, TRAINED_EXAMPLES)
    users = trained.select("user_id", "generation").unique("user_id", keep="first", maintain_order=True)
    likes = trained.select("user_id", "generation", movie_id="films").explode("movie_id")
    likes = likes.unique(["user_id", "movie_id"], keep="first", maintain_order=True)
    files = [path for purpose in _HELD_OUT for path in parquet_files(shards, purpose)]
    asked = scan(files).select("example_id", "user_id", "unseen", movie_id="answers").collect()
    unseen = asked.filter("unseen").join(users, on="user_id", how="inner", maintain_order="left")
    answers = asked.explode("movie_id").join(likes, on=["user_id", "movie_id"], how="inner", maintain_order="left")
    by = pl.format("in training {} of the adapter's chain", "generation")
    findings = [
        Finding(4, "unseen user was trained on", unseen.select("example_id", detail=by)),
        Finding(
            4,
            "answer was trained on",
            answers.select("example_id", detail=pl.format("film {} ", "movie_id") + by),
        ),
    ]
    return to_leaks(findings, limit=limit)


def refuse_trained_on(finetuned: Path, shards: Path) -> None:
    """Refuse to go on from an adapter whose chain was trained on what this run holds out; before any training.

    Raises:
        InputError: it was; the line counts the examples and names the first, and what was trained on.
    """
    leaks = ancestor_leaks(finetuned, shards, limit=None)
    if leaks:
        first = leaks[0]
        raise InputError(
            f"finetune.start = 'champion', but {len({leak.subject for leak in leaks})} of this run's valid and test "
            f"examples were trained on by the champion {finetuned.name[:10]} or its ancestors, first {first.subject}: "
            f"{first.kind}, {first.detail}; set finetune.start to 'base' for this run"
        )
