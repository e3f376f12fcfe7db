"""Compute the lists of a sample of queries again, with another future: the audit compares them with those written.

Whatever a list takes from its user's rows at or after the cutoff shows as a difference: an answer, a rating, or the
time of the request alone, which on MovieLens tells on which page the answer stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from tripletune.retrieve.histories import find_answers, find_history, find_seen, read_rows, with_request_time
from tripletune.retrieve.recent import RecentLikes
from tripletune.retrieve.retriever import Retriever
from tripletune.schemas.base import conform
from tripletune.schemas.hints import RETRIEVED_HINTS
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import DAY, REQUERIED, as_numbers
from tripletune.stable_hash import mix

USERS = 96
"""Users in the sample, each with one query."""
CHANGES = ("time", "ratings")
SHIFT = 400 * DAY
"""Added to the times from the cutoff on."""
_SAMPLE = 15 << 40
"""Added to the run's seed for the order of users; no other hash may use the same."""


def requery(
    files: Mapping[str, Path],
    retriever: Retriever,
    queries: pl.DataFrame,
    recent: RecentLikes | None,
    ranked: pl.Series | None,
) -> pl.DataFrame:
    """The lists of the sample after each change: ``schemas.REQUERIED``.

    Args:
        files: buckets of the split.
        retriever: that of the run.
        queries: of the run, ``QUERY_KEY``.
        recent: likes of the recent list; None where the run has no such list.
        ranked: ids of the users who are ranked; None: all users.
    """
    asked = draw(
        queries if ranked is None else queries.filter(pl.col("user_id").is_in(ranked.implode())), retriever.seed
    )
    users = asked["user_id"].implode()
    rows = read_rows(list(files.values())).filter(pl.col("user_id").is_in(users)).collect()
    rows = rows.sort("user_id", "position")
    unseen = rows.select("user_id", "unseen").unique()
    asked = asked.join(unseen, on="user_id", how="left").select("user_id", "purpose", "unseen", "cutoff")
    found = [REQUERIED.to_frame()]
    for change in CHANGES:
        for name, lists in _ask(retriever, asked, change_future(rows, asked, change), recent):
            found.append(conform(lists.with_columns(change=pl.lit(change), retriever=pl.lit(name)), REQUERIED))
    return pl.concat(found).sort(*QUERY_KEY, "change", "retriever").rechunk()


def draw(queries: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Some users by a seeded hash, and one query of each, so that its rows from the cutoff on are of no other query.

    The i-th user gives the i-th of its queries, in order and round again, so that all purposes are in the sample.
    """
    users = queries["user_id"].unique().sort()
    drawn = users.gather(np.lexsort((users.to_numpy(), mix(users.to_numpy(), seed + _SAMPLE)))[:USERS])
    place = pl.DataFrame({"user_id": drawn}).with_row_index("place")
    mine = queries.join(place, on="user_id").sort(QUERY_KEY)
    number, size = pl.int_range(pl.len()).over("user_id"), pl.len().over("user_id")
    return mine.filter(number == pl.col("place") % size).select(QUERY_KEY)


def change_future(rows: pl.DataFrame, queries: pl.DataFrame, change: str) -> pl.DataFrame:
    """Change the rows from each user's cutoff on: their times, or which film they rate and how.

    Args:
        rows: SPLIT of the users, sorted by user and position.
        queries: one of each user.
        change: one of ``CHANGES``.
    """
    marked = rows.join(queries.select("user_id", "cutoff"), on="user_id", how="left", maintain_order="left")
    is_after = pl.col("position") >= pl.col("cutoff")
    if change == "time":
        return marked.with_columns(timestamp=pl.col("timestamp") + pl.when(is_after).then(SHIFT).otherwise(0)).drop(
            "cutoff"
        )
    after = marked.filter(is_after)
    # each row takes the film of the next, the last one that of the first
    after = after.with_columns(
        movie_id=pl.concat([after["movie_id"][1:], after["movie_id"][:1]]),
        rating=pl.col("rating").min() + pl.col("rating").max() - pl.col("rating"),
    )
    return pl.concat([marked.filter(~is_after), after]).sort("user_id", "position").drop("cutoff")


def _ask(
    retriever: Retriever, queries: pl.DataFrame, rows: pl.DataFrame, recent: RecentLikes | None
) -> Iterator[tuple[str, pl.DataFrame]]:
    """Names of lists, each with the queries and ``top``."""
    if retriever.reads_request_time:
        queries = with_request_time(queries, rows)
    history, seen, answers = find_history(rows, queries), find_seen(rows, queries), find_answers(rows, queries)
    retrieved, _, rankings = retriever.retrieve_and_rank(queries, history, seen, answers)
    if recent is not None:
        popular = rankings.filter(pl.col("retriever") == "popularity").drop("top")
        rankings = pl.concat([rankings, recent.rank(popular, rows)])
    for (name,), lists in rankings.group_by("retriever"):
        yield str(name), lists
    if retriever.settings.candidates != "kerag":  # which puts the answers among the candidates
        yield "candidates", retrieved.select(*QUERY_KEY, top="candidates")
        for hint in RETRIEVED_HINTS:
            yield hint.name, retrieved.select(*QUERY_KEY, top=as_numbers(hint))
