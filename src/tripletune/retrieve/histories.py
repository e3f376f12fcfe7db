"""Queries and their evidence: the users, their cutoffs, and the rows before each cutoff.

A query is a (user, purpose, cutoff). Its cutoff is the position of the first answer in the user's own order of time;
everything that retrieve computes for it comes from rows with a lower position. A user may have several cutoffs: fit a
is never trained on a ``target`` like, and no fit on a ``valid`` or ``test`` like, so those before a cutoff are only
newer history.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from tripletune.errors import InputError
from tripletune.models.serving.catalogue import Catalogue, Fit, Likes, RatingEvents
from tripletune.models.serving.retriever import Histories
from tripletune.models.serving.topk import Ragged
from tripletune.schemas.base import conform
from tripletune.schemas.query import ANSWER_LABEL, FIT_OF, IS_ANSWER, PURPOSES, QUERY_KEY
from tripletune.schemas.split import ASKED, LIKE_LABELS, SPLIT
from tripletune.schemas.training import TRAINED_ON
from tripletune.store.read import scan_parquet


def read_rows(files: list[Path]) -> pl.LazyFrame:
    """Rows of some buckets."""
    return scan_parquet(files, hive_partitioning=False).select(SPLIT.names())


def read_fit_likes(lightgcn: Path, fit: str) -> pl.DataFrame:
    """Training likes of a fit, read from its own output (a pinned fit used another split).

    Args:
        lightgcn: folder of that stage; the other models of a run are trained on the same rows.
        fit: ``a`` or ``b``.

    Returns:
        ``user_id, movie_id, age`` with age in likes, the newest 0; sorted by user and age.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = lightgcn / "trained_on.parquet"
    try:
        likes = conform(scan_parquet(path).filter(pl.col("fit") == fit).collect(engine="streaming"), TRAINED_ON)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} cannot be read ({error}); train the specialist again") from None
    user_E = likes["user_id"].to_numpy()
    start_U = np.flatnonzero(np.diff(user_E, prepend=-1))
    if (np.diff(user_E) < 0).any():
        raise InputError(f"{path} is not sorted by user; train the specialist again")
    count_U = np.diff(start_U, append=len(user_E))
    age_E = np.arange(len(user_E)) - np.repeat(start_U, count_U)
    oldest_first = np.repeat(start_U + count_U - 1, count_U) - age_E
    return likes.select("user_id", pl.col("movie_id").gather(oldest_first), age=pl.Series(age_E, dtype=pl.Int32))


def find_seen_in_training(files: list[Path], lightgcn: Path) -> pl.DataFrame:
    """Leaked queries, to be dropped: their fit was trained on an answer, or on a user who is unseen in this run.

    This run's split may contradict the one that pinned specialists were trained on: a film that is rated again moves to
    the end of its user's order, from ``graph`` to a later label.

    Args:
        files: buckets of the split.
        lightgcn: folder of that stage; the other models of a run are trained on the same rows, or on some of them.

    Returns:
        ``user_id, purpose``, unique: dropped at every cutoff.
    """
    trained = scan_parquet(lightgcn / "trained_on.parquet")
    film = (pl.col("user_id").cast(pl.Int64) * (1 << 32) + pl.col("movie_id")).alias("film")
    held_out = (
        scan_parquet(files, hive_partitioning=False)
        .filter(pl.col("label").is_in(list(ANSWER_LABEL.values())))
        .select("user_id", "label", "unseen", film)
        .collect(engine="streaming")
    )
    found = []
    for purpose, label in ANSWER_LABEL.items():
        asked = held_out.filter(pl.col("label") == label)
        # join from the held-out rows, which are far fewer than the training likes
        films = trained.filter(pl.col("fit") == FIT_OF[purpose]).select(film)
        of_film = films.join(asked.lazy().select("film"), on="film", how="semi").collect(engine="streaming")
        unseen = asked.filter("unseen")
        of_user = trained.select("user_id").join(unseen.lazy(), on="user_id", how="semi").collect(engine="streaming")
        known = pl.concat([asked.join(of_film, on="film", how="semi"), unseen.join(of_user, on="user_id", how="semi")])
        found.append(known.select("user_id", purpose=pl.lit(purpose, dtype=PURPOSES)))
    return pl.concat(found).unique().sort("user_id", "purpose")


def read_only_users(split: Path) -> pl.Series | None:
    """Users of valid and test queries where the split has an evaluation set from an earlier run; None: all users."""
    path = split / ASKED
    return pl.Series(json.loads(path.read_text("utf-8"))["users"], dtype=pl.Int32) if path.is_file() else None


def find_questions(rows: pl.DataFrame, only_users: pl.Series | None = None, *, train_cutoffs: int = 1) -> pl.DataFrame:
    """Find all queries: ``user_id, purpose, unseen, cutoff``, sorted by user, purpose and cutoff.

    Train: warm users with at least one ``target`` like; valid and test: every such like of every user, restricted to
    ``only_users`` if given, is the answer of a query of its own.

    Args:
        rows: of the split.
        only_users: result of ``read_only_users``.
        train_cutoffs: training queries of a user. T ``target`` likes, oldest first, are cut into
            m = min(``train_cutoffs``, T) windows; the k-th (from 0) begins at like floor(k * T / m), which is a cutoff.
            The windows' lengths differ by one at most, the first begins at the first ``target`` like, and the last
            holds at least one like, so that every query has an answer.
    """
    found = []
    for purpose, label in ANSWER_LABEL.items():
        asked = rows.filter(pl.col("label") == label)
        num_likes = pl.len().over("user_id").cast(pl.Int64)
        num_windows = pl.min_horizontal(num_likes, train_cutoffs) if purpose == "train" else num_likes
        if purpose == "train":
            asked = asked.filter(~pl.col("unseen"))
        elif only_users is not None:
            asked = asked.filter(pl.col("user_id").is_in(only_users.implode()))
        # the largest k with floor(k * T / m) <= r - 1, for the r-th like
        window = (pl.col("position").rank("ordinal").over("user_id") * num_windows - 1) // num_likes
        found.append(
            asked.group_by("user_id", window.alias("window"))
            .agg(pl.col("unseen").first(), cutoff=pl.col("position").min())
            .select("user_id", pl.lit(purpose, dtype=PURPOSES).alias("purpose"), "unseen", "cutoff")
        )
    return pl.concat(found).sort(QUERY_KEY)


def find_history(rows: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
    """Likes before the cutoff: ``user_id, purpose, cutoff, movie_id, age`` with age in likes, the newest 0."""
    likes = rows.filter(pl.col("label").is_in(LIKE_LABELS)).select("user_id", "movie_id", "position")
    return with_age(_before(likes, queries), QUERY_KEY)


def find_seen(rows: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
    """All films rated before the cutoff, liked or not, oldest first within a query.

    Returns:
        ``user_id, purpose, cutoff, movie_id, rating, timestamp, like``.
    """
    like = pl.col("label").is_in(LIKE_LABELS).alias("like")
    seen = _before(rows.select("user_id", "movie_id", "position", "rating", "timestamp", like), queries)
    return seen.select(*QUERY_KEY, "movie_id", "rating", "timestamp", "like")


def find_answers(rows: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
    """Held-out likes: train: those from the cutoff on; valid and test: the one at the cutoff.

    Returns:
        ``user_id, purpose, cutoff, movie_id, rating``, in order of time within a query.
    """
    labels = pl.DataFrame(
        {"purpose": list(ANSWER_LABEL), "label": list(ANSWER_LABEL.values())},
        schema={"purpose": PURPOSES, "label": rows.schema["label"]},
    )
    asked = queries.select(*QUERY_KEY).join(labels, on="purpose")
    answers = asked.join(rows, on=["user_id", "label"], how="inner").filter(IS_ANSWER)
    return answers.sort(*QUERY_KEY, "position").select(*QUERY_KEY, "movie_id", "rating")


def with_age(likes: pl.DataFrame, by: tuple[str, ...]) -> pl.DataFrame:
    """Replace ``position`` by ``age``: how many of the group's likes are newer."""
    newest_first = likes.sort(*by, "position", descending=[False] * len(by) + [True])
    age = pl.int_range(pl.len(), dtype=pl.Int32).over(by)
    return newest_first.with_columns(age=age).select(*by, "movie_id", "age")


def _before(rows: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
    joined = queries.select(*QUERY_KEY).join(rows, on="user_id", how="inner")
    return joined.filter(pl.col("position") < pl.col("cutoff")).sort(*QUERY_KEY, "position")


def with_request_time(queries: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The queries with ``asked_at``, the seconds of the row at each cutoff, for models that read that time."""
    times = rows.select("user_id", cutoff="position", asked_at="timestamp")
    return queries.join(times, on=["user_id", "cutoff"], how="left", maintain_order="left")


def number_histories(
    queries: pl.DataFrame, history: pl.DataFrame, seen: pl.DataFrame, fit: Fit
) -> tuple[pl.DataFrame, Histories]:
    """Number the queries from 0 and gather what the lists read of each.

    Args:
        queries: sorted by ``QUERY_KEY``; their order gives the numbers. May have ``asked_at`` of
            ``with_request_time``.
        history: of ``find_history``; rows of other queries are dropped.
        seen: of ``find_seen``, likewise.
        fit: LightGCN's.

    Returns:
        ``seen`` with the number as ``viewer``, sorted by it and oldest first; and the histories.
    """
    numbered = queries.select(*QUERY_KEY).with_row_index("viewer")
    liked = history.join(numbered, on=QUERY_KEY).sort("viewer", "age")
    rated = seen.join(numbered, on=QUERY_KEY, maintain_order="left").sort("viewer", maintain_order=True)
    likes = Likes(*(liked[column].to_numpy().astype(np.int64) for column in ("viewer", "movie_id", "age")))
    user_E, movie_E, time_E = (
        rated[column].to_numpy().astype(np.int64) for column in ("viewer", "movie_id", "timestamp")
    )
    return rated, Histories(
        likes=likes,
        events=RatingEvents(user_E, movie_E, rated["rating"].to_numpy(), time_E, rated["like"].to_numpy()),
        seen=rated_columns(rated, fit.catalogue, len(queries)),
        lightgcn_UD=fit.pool(likes, len(queries)),
        asked_U=queries["asked_at"].to_numpy().astype(np.int64) if "asked_at" in queries.columns else None,
    )


def rated_columns(rated: pl.DataFrame, catalogue: Catalogue, num_viewers: int) -> Ragged:
    """Columns of the catalogue that each numbered user rated: the mask."""
    column_E = catalogue.columns(rated["movie_id"].to_numpy())
    known_E = column_E >= 0
    return Ragged.from_pairs(rated["viewer"].to_numpy()[known_E].astype(np.int64), column_E[known_E], num_viewers)
