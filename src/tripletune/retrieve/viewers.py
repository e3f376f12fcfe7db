"""Who is asked about, up to when, and from which rows: the border that no later row may cross.

A question is a (viewer, purpose). Its cutoff is the position of the first answer in the viewer's own order of time;
everything that retrieve computes for it comes from rows with a lower position.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tripletune.errors import InputError
from tripletune.schemas import ANSWER_LABEL, LIKE_LABELS, PURPOSES, QUESTION, SPLIT


def shard_files(split: Path) -> dict[str, Path]:
    """The split's buckets by number (``000``...).

    Raises:
        InputError: there are none.
    """
    files = {path.parent.name.removeprefix("shard="): path for path in sorted(split.glob("shard=*/part.parquet"))}
    if not files:
        raise InputError(f"no shard=NNN/part.parquet in {split}; run the split stage")
    return files


def read_rows(files: list[Path]) -> pl.LazyFrame:
    """Rows of some buckets, without the timestamp, whose work is done by ``position``."""
    return pl.scan_parquet(files, hive_partitioning=False).select(name for name in SPLIT.names() if name != "timestamp")


def find_questions(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per viewer and purpose: ``user_id, purpose, unseen, cutoff``, sorted by user and purpose.

    Train: warm viewers with at least one ``target`` like; valid and test: everyone who has that like.
    """
    found = []
    for purpose, label in ANSWER_LABEL.items():
        asked = rows.filter(pl.col("label") == label)
        if purpose == "train":
            asked = asked.filter(~pl.col("unseen"))
        found.append(
            asked.group_by("user_id")
            .agg(pl.col("unseen").first(), cutoff=pl.col("position").min())
            .select("user_id", pl.lit(purpose, dtype=PURPOSES).alias("purpose"), "unseen", "cutoff")
        )
    return pl.concat(found).sort(QUESTION)


def find_history(rows: pl.DataFrame, questions: pl.DataFrame) -> pl.DataFrame:
    """Likes before the cutoff: ``user_id, purpose, movie_id, age`` with age in likes, the newest 0."""
    likes = rows.filter(pl.col("label").is_in(LIKE_LABELS)).select("user_id", "movie_id", "position")
    return with_age(_before(likes, questions), QUESTION)


def find_seen(rows: pl.DataFrame, questions: pl.DataFrame) -> pl.DataFrame:
    """Everything rated before the cutoff, liked or not: ``user_id, purpose, movie_id``; the one mask."""
    return _before(rows.select("user_id", "movie_id", "position"), questions).select(*QUESTION, "movie_id")


def find_answers(rows: pl.DataFrame, questions: pl.DataFrame) -> pl.DataFrame:
    """The held-out likes: ``user_id, purpose, movie_id, rating``."""
    labels = pl.DataFrame(
        {"purpose": list(ANSWER_LABEL), "label": list(ANSWER_LABEL.values())},
        schema={"purpose": PURPOSES, "label": rows.schema["label"]},
    )
    asked = questions.select(*QUESTION).join(labels, on="purpose")
    answers = asked.join(rows, on=["user_id", "label"], how="inner")
    return answers.sort(*QUESTION, "position").select(*QUESTION, "movie_id", "rating")


def with_age(likes: pl.DataFrame, by: tuple[str, ...]) -> pl.DataFrame:
    """Replace ``position`` by ``age``: how many of the group's likes are newer."""
    newest_first = likes.sort(*by, "position", descending=[False] * len(by) + [True])
    age = pl.int_range(pl.len(), dtype=pl.Int32).over(by)
    return newest_first.with_columns(age=age).select(*by, "movie_id", "age")


def _before(rows: pl.DataFrame, questions: pl.DataFrame) -> pl.DataFrame:
    joined = questions.select(*QUESTION, "cutoff").join(rows, on="user_id", how="inner")
    return joined.filter(pl.col("position") < pl.col("cutoff")).sort(*QUESTION, "position").drop("cutoff")
