# Shape letters in this file:
#   E rows of ratings, U users (those with an answer, where there is a rating's count)
"""Reuse of an earlier run's retrieve output: the rows of users whose ratings up to the answers are unchanged.

A query's rows depend on its user's own ratings up to the answers, on the trained models, on the facts that the R-GAT
weights, and on settings. The last three are the same (``increments.find_earlier``); the first is compared by a digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tripletune.retrieve.triples import read_triples
from tripletune.schemas.base import conform
from tripletune.schemas.query import ANSWER_LABEL, QUERY_KEY
from tripletune.schemas.retrieve import RECENT, VIEWERS
from tripletune.stable_hash import mix, pair_hash
from tripletune.store.increments import compare_users, same_files
from tripletune.store.read import read_parquet

TABLES = {
    "retrieved": QUERY_KEY,
    "choices": (*QUERY_KEY, "movie_id", "rank"),
    "profiles": (*QUERY_KEY, "relation"),
    "counts": QUERY_KEY,
}
"""Tables with a file per bucket, and the columns each is sorted by."""
_FILM, _ROW, _TIME = 10 << 40, 11 << 40, 13 << 40
"""Seeds of the digests; no other hash may use the same ones."""


def digest_users(rows: pl.DataFrame) -> pl.DataFrame:
    """Digest of each user's rows up to the last answer: ``schemas.VIEWERS``, only users with an answer.

    Later ratings are not in it, since no query uses them.

    Args:
        rows: of a bucket of the split (``histories.read_rows``), sorted by user and position as split writes them.
    """
    user_E = rows["user_id"].to_numpy()
    place_E, start_U = np.arange(len(user_E)), np.flatnonzero(np.diff(user_E, prepend=-1))
    if not len(user_E):
        return VIEWERS.to_frame()
    is_answer_E = rows["label"].is_in(list(ANSWER_LABEL.values())).to_numpy()
    last_U = np.maximum.reduceat(np.where(is_answer_E, place_E, -1), start_U)
    known = rows.filter(pl.Series(place_E <= np.repeat(last_U, np.diff(start_U, append=len(user_E)))))
    user_U, ratings_U = user_E[start_U][last_U >= 0], (last_U - start_U + 1)[last_U >= 0]
    movie_E, position_E, mark_E, time_E = (
        known[name].to_physical().to_numpy().astype(np.int64) for name in ("movie_id", "position", "label", "timestamp")
    )
    rating_E = known["rating"].to_numpy().astype(np.float32).view(np.uint32).astype(np.int64)
    mark_E = mark_E * 2 + known["unseen"].to_numpy()
    row_E = pair_hash(position_E << 32 | movie_E, mark_E << 32 | rating_E, _ROW)
    sums = {
        name: np.add.reduceat(hash_E, np.cumsum(ratings_U) - ratings_U) if len(hash_E) else hash_E
        for name, hash_E in (
            ("films", mix(movie_E, _FILM)),
            ("rows", pair_hash(row_E.view(np.int64), time_E, _TIME)),
        )
    }
    return conform(pl.DataFrame({"user_id": user_U, "ratings": ratings_U, **sums}), VIEWERS)


@dataclass(frozen=True, slots=True)
class EarlierOutput:
    """A finished retrieve output that differs from this run's in ratings alone."""

    folder: Path
    rankings: pl.DataFrame

    @classmethod
    def open(cls, folder: Path) -> EarlierOutput:
        """Open an output and read its rankings, which are one file; the recent list is made from all users' likes."""
        rankings = read_parquet(folder / "rankings.parquet")
        return cls(folder, rankings.filter(pl.col("retriever") != RECENT))

    def compare(self, name: str, viewers: pl.DataFrame) -> pl.DataFrame:
        """``increments.compare_users`` of a bucket, by the name of its file."""
        path = self.folder / "viewers" / name
        return compare_users(read_parquet(path) if path.is_file() else VIEWERS.to_frame(), viewers)

    def keep(self, name: str, same: pl.DataFrame, queries: pl.DataFrame, ranked: pl.Series | None) -> pl.DataFrame:
        """The queries of a bucket whose rows can all be reused: ``schemas.QUERY_KEY``.

        Args:
            name: of the bucket's file.
            same: ``user_id`` of users with unchanged ratings.
            queries: this run's.
            ranked: ids of the users who are ranked in this run; None: all users.
        """
        path = self.folder / "retrieved" / name
        if not path.is_file():
            return queries.select(QUERY_KEY).clear()
        before = read_parquet(path, columns=list(QUERY_KEY))
        kept = queries.join(same, on="user_id", how="semi").join(before, on=QUERY_KEY, how="semi").select(QUERY_KEY)
        needs_rank = pl.col("purpose") != "train"
        if ranked is not None:
            needs_rank &= pl.col("user_id").is_in(ranked.implode())
        unranked = kept.filter(needs_rank).join(self.rankings, on=QUERY_KEY, how="anti")
        return kept.join(unranked, on=QUERY_KEY, how="anti")

    def add(self, table: str, name: str, rows: pl.DataFrame, kept: pl.DataFrame) -> pl.DataFrame:
        """This run's rows of a bucket and those of the reused queries, as in a full run."""
        if kept.is_empty():
            return rows
        mine = self._read(table, name).join(kept, on=QUERY_KEY, how="semi")
        return pl.concat([rows, mine.select(rows.columns)]).sort(TABLES[table]).rechunk()

    def ranked(self, kept: pl.DataFrame, ranked: pl.Series | None) -> pl.DataFrame:
        """The rankings of the reused queries."""
        mine = self.rankings.join(kept, on=QUERY_KEY, how="semi")
        return mine if ranked is None else mine.filter(pl.col("user_id").is_in(ranked.implode()))

    def _read(self, table: str, name: str) -> pl.DataFrame:
        return read_parquet(self.folder / table / name)


def same_facts(before: Path, now: Path, rgat: Path) -> bool:
    """Whether two knowledge folders have the same triples among those that the R-GAT weights; no others are shown.

    Args:
        before, now: finished outputs of the knowledge stage.
        rgat: folder of that stage.
    """
    if same_files(before, now, ("entities.parquet", "relations.parquet", "triples.parquet")):
        return True
    key = ["movie_id", "relation", "entity"]
    weighed = read_parquet(rgat / "attention.parquet", columns=key).unique()
    shown = [read_triples(folder).join(weighed, on=key, how="semi").sort(key) for folder in (before, now)]
    return shown[0].equals(shown[1])
