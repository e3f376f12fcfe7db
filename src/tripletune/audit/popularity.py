"""Rule 5, the future of all users: lists by popularity are recomputed from the likes known at the query's time.

``popularity`` follows the training likes of the fit, ``popularity-7d`` the likes of the days before the query (see
``schemas.retrieve.RECENT``). Counts are compared, not films, so that any order of ties is right.
"""

# Shape letters in this file: M films, K places of a list
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.audit.rules import Finding
from tripletune.schemas.generate import EXAMPLE_ID
from tripletune.schemas.query import FIT_OF, QUERY_KEY
from tripletune.schemas.retrieve import DAY, RECENT, RECENT_DAYS
from tripletune.schemas.split import LIKE_LABELS, STARTS
from tripletune.store.parquet import scan
from tripletune.store.shards import split_files

Ints = npt.NDArray[np.int64]

SAMPLED = 200
"""Queries whose lists are recomputed, evenly spaced over all."""
KIND = "popularity counts other likes than those before the query"


def popularity_findings(split: Path, retrieve: Path, lightgcn: Path) -> Iterator[Finding]:
    """Lists by popularity that do not follow the likes known at the query's time.

    Args:
        split, retrieve: folders of the stages.
        lightgcn: folder of that stage: the catalogue, and the training likes, which rule 1 compares with the split.
    """
    lists = scan(retrieve / "rankings.parquet").filter(pl.col("retriever").is_in(["popularity", RECENT]))
    queries = lists.select(QUERY_KEY).unique().collect().sort(QUERY_KEY).with_columns(EXAMPLE_ID)
    queries = queries.gather_every(max(1, len(queries) // SAMPLED)).head(SAMPLED)
    # unlike a join alone, the filter lets the reader skip the other columns of other users' rows
    rows = scan(list(split_files(split).values())).filter(
        pl.col("user_id").is_in(queries["user_id"].unique().implode())
    )
    rows = rows.join(queries.lazy(), on="user_id").filter(pl.col("position") < pl.col("cutoff"))
    seen = rows.group_by(QUERY_KEY).agg(rated="movie_id", newest=pl.col("timestamp").max())
    checked = lists.join(queries.lazy(), on=QUERY_KEY).join(seen, on=QUERY_KEY, how="left")
    counts = _Counts.read(split, lightgcn)
    found = []
    for row in checked.sort(*QUERY_KEY, "retriever").collect().iter_rows(named=True):
        if wrong := counts.check(row):
            found.append((row["example_id"], f"{row['retriever']}: {wrong}"))
    yield Finding(5, KIND, pl.DataFrame(found, {"example_id": pl.String, "detail": pl.String}, orient="row"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """Likes by which the lists are checked."""

    films_M: Ints
    """The catalogue, ascending ids."""
    likes_M: Ints
    """Likes of each film in the fit."""
    late: pl.DataFrame
    """``movie_id, timestamp``: likes of all users since the first window."""
    starts: Mapping[str, int]
    """First second of each purpose; empty where the split has no date for all users."""

    @classmethod
    def read(cls, split: Path, lightgcn: Path) -> _Counts:
        """Count the likes that fit b was trained on, and read the split's dates, where it has some."""
        trained = scan(lightgcn / "trained_on.parquet").filter(pl.col("fit") == FIT_OF["test"])
        likes = trained.group_by("movie_id").agg(likes=pl.len())
        films = scan(lightgcn / "movies.parquet").select("movie_id").join(likes, on="movie_id", how="left")
        by_film = films.sort("movie_id").collect().fill_null(0).cast(pl.Int64)
        path = split / STARTS
        starts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        first = min(starts.values()) - RECENT_DAYS * DAY if starts else np.iinfo(np.int64).max
        late = scan(list(split_files(split).values())).filter(
            pl.col("label").is_in(LIKE_LABELS), pl.col("timestamp") >= first
        )
        return cls(
            films_M=by_film["movie_id"].to_numpy(),
            likes_M=by_film["likes"].to_numpy(),
            late=late.select("movie_id", "timestamp").collect(engine="streaming"),
            starts=starts,
        )

    def check(self, row: Mapping[str, Any]) -> str:
        """The first wrong place of a list in words, empty where there is none.

        Args:
            row: RANKINGS, with the films ``rated`` before the cutoff and the ``newest`` time among them.
        """
        worth_M = self.likes_M
        if row["retriever"] == RECENT:
            if row["purpose"] not in self.starts:
                return f"the split has no {STARTS}"
            worth_M = self._recent(max(row["newest"] // DAY * DAY, self.starts[row["purpose"]]))
        is_allowed_M = np.ones(len(self.films_M), dtype=bool)
        is_allowed_M[self._places(row["rated"] or [])] = False
        place_K = self._places(row["top"])
        if len(place_K) < len(row["top"]) or len(np.unique(place_K)) < len(place_K):
            return "a film stands twice in it, or is unknown to the fit"
        if not is_allowed_M[place_K].all():
            return "it names a film that was rated before the cutoff"
        best_K = np.sort(worth_M[is_allowed_M])[::-1][: len(place_K)]
        wrong = np.flatnonzero(worth_M[place_K] != best_K)
        return f"film {row['top'][wrong[0]]} at place {wrong[0] + 1} is not the next by likes" if len(wrong) else ""

    def _recent(self, end: int) -> Ints:
        """Likes in the days before ``end``; for films without any, and below all others, the likes in the fit."""
        time = pl.col("timestamp")
        week = self.late.filter(time >= end - RECENT_DAYS * DAY, time < end)["movie_id"].to_numpy()
        week_M = np.bincount(self._places(week), minlength=len(self.films_M))
        return np.where(week_M > 0, week_M + self.likes_M.max(initial=0), self.likes_M)

    def _places(self, films: npt.ArrayLike) -> Ints:
        """Places of those films that are in the catalogue."""
        wanted = np.asarray(films, dtype=np.int64)
        return np.searchsorted(self.films_M, wanted[np.isin(wanted, self.films_M)])
