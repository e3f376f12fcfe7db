"""Evidence (likes and dislikes before the cutoff) and answers (held-out likes) of queries, from the split's rows.

A query is a user, a purpose and a cutoff: evidence has positions below the cutoff, answers are at it and, for
train, after it.
"""

from __future__ import annotations

import polars as pl

from tripletune.schemas.query import IS_ANSWER, PURPOSES, QUERY_KEY
from tripletune.schemas.split import LIKE_LABELS

SPLIT_COLUMNS = ("user_id", "movie_id", "rating", "position", "label")
"""Columns of the split that are read here."""


def collect_evidence(
    rows: pl.DataFrame, queries: pl.DataFrame, *, dislike: float, max_liked: int, max_disliked: int
) -> pl.DataFrame:
    """Liked and disliked films before the cutoff, newest first.

    Args:
        rows: rows of the split (``SPLIT_COLUMNS``).
        queries: the queries: ``user_id, purpose, cutoff``.
        dislike: a rating below this is a dislike.
        max_liked, max_disliked: number of the newest ones that are kept.

    Returns:
        ``user_id, purpose, cutoff, liked, disliked``; one row per query, in the order of ``queries``; lists may be
        empty.
    """
    asked = queries.select(*QUERY_KEY)
    before = asked.join(rows, on="user_id").filter(pl.col("position") < pl.col("cutoff"))
    liked = pl.col("label").is_in(LIKE_LABELS)
    disliked = (pl.col("rating") < dislike) & ~liked
    lists = (
        before.filter(liked | disliked)
        .sort(*QUERY_KEY, "position", descending=[False] * len(QUERY_KEY) + [True])
        .group_by(QUERY_KEY, maintain_order=True)
        .agg(
            liked=pl.col("movie_id").filter(liked).head(max_liked),
            disliked=pl.col("movie_id").filter(disliked).head(max_disliked),
        )
    )
    joined = asked.join(lists, on=QUERY_KEY, how="left", maintain_order="left")
    return joined.with_columns(pl.col("liked", "disliked").fill_null(pl.lit([], dtype=pl.List(pl.Int32))))


def collect_answers(rows: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
    """Held-out likes of each query: ``user_id, purpose, cutoff, movie_id, rating``, in order of time.

    Train: every ``target`` like from the cutoff on; valid and test: the one like at the cutoff.
    """
    purpose = (
        pl.when(pl.col("label") == "target")
        .then(pl.lit("train"))
        .when(pl.col("label").is_in(["valid", "test"]))
        .then(pl.col("label").cast(pl.String))
        .cast(PURPOSES)
    )
    held_out = rows.with_columns(purpose=purpose).filter(pl.col("purpose").is_not_null())
    asked = queries.select(QUERY_KEY)
    return (
        held_out.join(asked, on=["user_id", "purpose"])
        .filter(IS_ANSWER)
        .sort(*QUERY_KEY, "position")
        .select(*QUERY_KEY, "movie_id", "rating")
    )
