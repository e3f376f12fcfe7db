"""Feedback is learned from training questions alone: no answer of valid or test, and no unseen user.

Proven from the split's own rows, whatever purpose a log states: the cutoff of a training question is the position of a
``target`` like of a user who is not unseen, and each of its answers is a ``target`` like from the cutoff on.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tripletune.errors import InputError
from tripletune.schemas.query import ANSWER_LABEL
from tripletune.schemas.split import SPLIT
from tripletune.store.parquet import scan
from tripletune.store.shards import split_files


def find_other_questions(examples: pl.DataFrame, split: Path) -> pl.DataFrame:
    """The examples that are no training questions of a split.

    Args:
        examples: ``example_id, user_id, cutoff, answers`` (films).
        split: folder of that stage.

    Returns:
        ``example_id, why``, sorted by example; why is the first of the rules that it breaks.
    """
    mine = pl.col("user_id").is_in(examples["user_id"].unique().implode())
    rows = scan(list(split_files(split).values())).select(SPLIT.names()).filter(mine).collect()
    target = pl.col("label") == ANSWER_LABEL["train"]
    unseen = rows.filter("unseen").select("user_id").unique()
    starts = rows.filter(target).select("user_id", cutoff="position")
    asked = examples.select("example_id", "user_id", "cutoff", movie_id="answers").explode("movie_id")
    answers = asked.join(
        rows.select("user_id", "movie_id", "label", "position"), on=["user_id", "movie_id"], how="left"
    )
    wrong = answers.filter((target & (pl.col("position") >= pl.col("cutoff"))).fill_null(False).not_())
    found = [
        examples.join(unseen, on="user_id", how="semi").select("example_id", why=pl.lit("its user is unseen")),
        examples.join(starts, on=["user_id", "cutoff"], how="anti").select(
            "example_id", why=pl.lit("no target like is at its cutoff")
        ),
        wrong.select(
            "example_id",
            why=pl.format(
                "its answer {} is {} there", pl.col("movie_id"), pl.col("label").cast(pl.String).fill_null("not rated")
            ),
        ),
    ]
    return pl.concat(found).unique("example_id", keep="first", maintain_order=True).sort("example_id")


def refuse_other_questions(examples: pl.DataFrame, split: Path, log: Path) -> None:
    """Refuse a log with an example that is no training question of the split that it was made from.

    Args:
        examples, split: as for ``find_other_questions``.
        log: the log's file, for the message.

    Raises:
        InputError: there is one; the line counts them and names the first.
    """
    found = find_other_questions(examples, split)
    if len(found):
        example, why = found.row(0)
        raise InputError(
            f"{log}: {len(found):,} of {len(examples):,} examples are no training questions, first {example}: {why}; "
            "nothing is learned from answers of valid or test: run probe again"
        )
