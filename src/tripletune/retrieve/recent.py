# Shape letters in this file:
#   U users, M films, L likes, W likes of a window, K places
"""The most liked films of the last days: a baseline where one date separates past and future for all users.

On splits by time it beats many trained models, since popularity counted over all years holds films that nobody watches
any more (Ji, Sun, Zhang & Li, "A Re-visit of the Popularity Baseline in Recommender Systems", SIGIR 2020, RecentPop).

The window of a query holds what the last nightly run before the query would know: the likes of all users in the days
before midnight (UTC) of the user's newest rating before the cutoff, or before the first day of the query's purpose
where that is later. The time of the answer is not read, and no like of the window is later than the query (Ji et al.,
"A Critical Study on Data Leakage in Recommender System Offline Evaluation", TOIS 2023).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tripletune.config import LISTED_FILMS
from tripletune.models.serving.catalogue import Catalogue
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.histories import find_seen, rated_columns, read_rows
from tripletune.retrieve.rankings import as_lists, rank_in_order
from tripletune.schemas.base import conform
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import DAY, RANKINGS, RECENT, RECENT_DAYS
from tripletune.schemas.split import LIKE_LABELS, STARTS


def read_starts(split: Path) -> dict[str, int]:
    """First second of valid and of test; empty under a protocol without a date for all users."""
    path = split / STARTS
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentLikes:
    """The likes that windows are cut from."""

    catalogue: Catalogue
    time_L: Ints
    """Seconds, ascending."""
    column_L: Ints
    """Film, as a column of the catalogue."""
    popular_M: Ints
    """Films by their likes in the fit."""
    starts: Mapping[str, int]
    """``read_starts``."""

    @classmethod
    def read(
        cls, files: list[Path], catalogue: Catalogue, like_counts_M: Ints, starts: Mapping[str, int]
    ) -> RecentLikes:
        """Read the likes of all users, unseen ones too, since the days before the first query.

        Args:
            files: buckets of the split.
            catalogue: LightGCN's.
            like_counts_M: likes of each film in the fit.
            starts: ``read_starts``, not empty.
        """
        first = min(starts.values()) - RECENT_DAYS * DAY
        late = read_rows(files).filter(pl.col("label").is_in(LIKE_LABELS), pl.col("timestamp") >= first)
        likes = late.select("timestamp", "movie_id").collect(engine="streaming").sort("timestamp")
        column_L = catalogue.columns(likes["movie_id"].to_numpy())
        return cls(
            catalogue=catalogue,
            time_L=likes["timestamp"].to_numpy()[column_L >= 0],
            column_L=column_L[column_L >= 0],
            popular_M=np.argsort(-like_counts_M, kind="stable"),
            starts=starts,
        )

    def order(self, end: int) -> Ints:
        """Films by likes in the days before ``end``, then the others by likes in the fit; ties by column."""
        first, last = np.searchsorted(self.time_L, [end - RECENT_DAYS * DAY, end])
        count_M = np.bincount(self.column_L[first:last], minlength=len(self.popular_M))
        recent_W = np.flatnonzero(count_M)
        recent_W = recent_W[np.argsort(-count_M[recent_W], kind="stable")]
        return np.concatenate([recent_W, self.popular_M[count_M[self.popular_M] == 0]])

    def rank(self, queries: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
        """``RANKINGS`` of queries of valid and test.

        Args:
            queries: RANKINGS without ``top``.
            rows: of the split, of the queries' users.
        """
        numbered = queries.with_row_index("viewer")
        seen = find_seen(rows, queries).join(numbered.select("viewer", *QUERY_KEY), on=QUERY_KEY, maintain_order="left")
        columns = rated_columns(seen, self.catalogue, len(queries))
        newest = seen.group_by("viewer").agg(pl.col("timestamp").max())
        ends = (
            numbered.join(newest, on="viewer", how="left")
            .select(
                "viewer",
                end=pl.max_horizontal(
                    pl.col("timestamp") // DAY * DAY,
                    pl.col("purpose").cast(pl.String).replace_strict(self.starts, return_dtype=pl.Int64),
                ),
            )
            .partition_by("end", as_dict=True)
        )
        top_UK = np.full((len(queries), LISTED_FILMS), -1, dtype=np.int64)
        for (end,), mine in ends.items():
            user_S = mine["viewer"].to_numpy().astype(np.int64)
            top_UK[user_S] = rank_in_order(self.order(end), columns.rows(user_S), len(user_S))
        top = as_lists(self.catalogue.movie_ids(top_UK))
        return conform(queries.with_columns(top.alias("top"), retriever=pl.lit(RECENT)), RANKINGS)


def rank_recent(rankings: pl.DataFrame, files: Iterable[Path], likes: RecentLikes) -> pl.DataFrame:
    """``RANKINGS`` of the recent list for every query that is ranked by popularity.

    It is made from the likes of all users, so nothing of it can be reused from an earlier run.

    Args:
        rankings: of the other lists.
        files: buckets of the split.
        likes: those of the windows.
    """
    asked = rankings.filter(pl.col("retriever") == "popularity").drop("top")
    parts = [RANKINGS.to_frame()]
    for path in files:
        rows = read_rows([path]).collect()
        mine = asked.join(rows.select("user_id").unique(), on="user_id", how="semi", maintain_order="left")
        if len(mine):
            parts.append(likes.rank(mine, rows.join(mine, on="user_id", how="semi", maintain_order="left")))
    return pl.concat(parts)
