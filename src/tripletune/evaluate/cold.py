"""First-stage lists by what the fit knows: warm users, unseen users, and cold films.

A film is cold if no user of the fit rated it, liked or not, before the fit's data end: before the first day of valid
where the split has one date for all users, else before each user's own first held-out like.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl

from tripletune.config import LISTED_FILMS
from tripletune.evaluate.tables import CEILING_ROW
from tripletune.schemas.split import STARTS
from tripletune.store.parquet import scan
from tripletune.store.shards import split_files

MEASURES = ("recall", "cold_share")
KNOWLEDGE_GROUPS: dict[str, Callable[[], pl.Expr]] = {
    "warm": lambda: ~pl.col("unseen"),
    "unseen": lambda: pl.col("unseen"),
    "cold": lambda: pl.col("is_cold"),
}
"""Test queries of warm users, of unseen users, and, of both, those whose held-out film is cold."""


def known_films(split: Path) -> pl.Series:
    """Ids of the films that are not cold."""
    path = split / STARTS
    if path.is_file():
        end = pl.col("timestamp") < json.loads(path.read_text(encoding="utf-8"))["valid"]
    else:
        held_out = pl.col("position").filter(pl.col("label").is_in(["valid", "test"]))
        end = (pl.col("position") < held_out.min().over("user_id")).fill_null(value=True)
    # file by file: a user's rows are in one
    found = [
        scan(file).filter(~pl.col("unseen")).filter(end).select(pl.col("movie_id").unique()).collect()
        for file in split_files(split).values()
    ]
    return pl.concat(found)["movie_id"].unique().sort()


def score_by_knowledge(lists: pl.DataFrame, candidates: pl.DataFrame, known: pl.Series) -> pl.DataFrame:
    """One line per query and row: ``user_id, unseen, is_cold, row, recall, cold_share``.

    Args:
        lists: ``user_id, unseen, row, answer, top``, of the same queries in every row.
        candidates: ``user_id, unseen, answer, candidates`` of the test examples; their row is ``CEILING_ROW``.
        known: ``known_films``.

    Returns:
        ``recall``: whether the answer is among the first ``LISTED_FILMS`` of the list, or among the candidates;
        ``cold_share``: the share of these films that are cold, 0 for an empty list.
    """
    given = lists.select("user_id", "unseen", "answer", "row", films=pl.col("top").list.head(LISTED_FILMS))
    shown = candidates.select("user_id", "unseen", "answer", row=pl.lit(CEILING_ROW), films="candidates")
    known_set = known.implode()
    num_known = pl.col("films").list.eval(pl.element().is_in(known_set)).list.sum()
    return pl.concat([given, shown]).select(
        "user_id",
        "unseen",
        "row",
        is_cold=~pl.col("answer").is_in(known_set),
        recall=pl.col("films").list.contains(pl.col("answer")).cast(pl.Float64),
        cold_share=(1 - num_known / pl.col("films").list.len()).fill_nan(0.0),
    )
