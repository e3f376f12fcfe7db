"""Frozen evaluation sets: the valid and test queries of one run, evaluated for the same users in every later run.

A query is held when the user's ratings up to its answer are those it was frozen with: the same films, ratings and times
in the same order. Its cutoff, evidence and answer are then the same. Later ratings of the user are neither answers nor
training data. A user with a query that can no longer be held (an answer is gone, or an earlier film was rated again or
its rating arrived late) is dropped from the evaluation.
"""

# Shape letters in this file: V users, R ratings, F frozen queries, Q frozen queries of the V users
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.config import SplitConfig
from tripletune.data.split.history import Ratings
from tripletune.errors import ConfigError, InputError
from tripletune.schemas.base import conform
from tripletune.schemas.ingest import midnight
from tripletune.schemas.split import ASKED, FROZEN, SPLIT
from tripletune.stable_hash import UInt64Array, mix, pair_hash
from tripletune.store.files import write_json
from tripletune.store.read import read_parquet, scan_parquet
from tripletune.store.shards import split_files

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ORDER = ("user_id", "purpose", "position")
_CHOICE = 12 << 40
"""Seed offset of the draw of users."""
_NAMED = 20
"""Upper limit of missing users listed in the facts."""


@dataclass(frozen=True, slots=True)
class Held:
    """Users of a block whose queries are held, and the rows of their answers."""

    is_held_V: Bools
    user_Q: Ints
    row_Q: Ints
    is_test_Q: Bools


@dataclass(frozen=True, slots=True)
class Frozen:
    """Frozen queries, sorted by user."""

    user_F: Ints
    movie_F: Ints
    position_F: Ints
    evidence_F: UInt64Array
    is_test_F: Bools

    @classmethod
    def read(cls, path: Path, settings: SplitConfig) -> Frozen:
        """Read a file that ``freeze_queries`` made.

        Raises:
            InputError: the file is missing, has another schema or is empty.
            ConfigError: under global_time, an answer lies outside of this run's windows.
        """
        try:
            frozen = conform(read_parquet(path), FROZEN).sort(_ORDER)
        except (OSError, pl.exceptions.PolarsError):
            raise InputError(
                f"split.frozen = {str(path)!r} is no file of frozen queries; make one with `tripletune freeze`"
            ) from None
        if frozen.is_empty():
            raise InputError(f"split.frozen = {str(path)!r} holds no query; make another with `tripletune freeze`")
        if settings.protocol == "global_time":
            _require_windows(frozen, path, settings)
        user_F, movie_F, position_F = (
            frozen[name].to_numpy().astype(np.int64) for name in ("user_id", "movie_id", "position")
        )
        return cls(user_F, movie_F, position_F, frozen["evidence"].to_numpy(), (frozen["purpose"] == "test").to_numpy())

    def find(self, history: Ratings, like: float) -> Held:
        """Find the users whose queries are held.

        Args:
            history: each user's ratings, oldest first.
            like: an answer is a rating of this or more.
        """
        first_V, last_V = (np.searchsorted(self.user_F, history.user_ids_V, side) for side in ("left", "right"))
        count_V = last_V - first_V
        user_Q = np.repeat(np.arange(history.num_viewers), count_V)
        q = np.repeat(first_V - (np.cumsum(count_V) - count_V), count_V) + np.arange(len(user_Q))
        is_there_Q = self.position_F[q] < history.count_V[user_Q]
        row_Q = history.first_V[user_Q] + np.where(is_there_Q, self.position_F[q], 0)
        rows = np.flatnonzero(history.per_row(count_V > 0))
        position = rows - history.per_row(history.first_V)[rows]
        evidence = _evidence(history.movie_R[rows], history.rating_R[rows], history.time_R[rows], position)
        is_held_Q = (
            is_there_Q
            & (history.movie_R[row_Q] == self.movie_F[q])
            & (history.rating_R[row_Q] >= np.float32(like))
            & (evidence[np.searchsorted(rows, row_Q)] == self.evidence_F[q])
        )
        num_held_V = np.bincount(user_Q[is_held_Q], minlength=history.num_viewers)
        is_held_V = (count_V > 0) & (num_held_V == count_V)
        kept = is_held_V[user_Q]
        return Held(is_held_V, user_Q[kept], row_Q[kept], self.is_test_F[q][kept])

    def write_asked(self, out: Path, held: Ints, path: Path) -> dict[str, Any]:
        """Write the users of the valid and test queries to ``out/asked.json``.

        Args:
            out: the split's work folder.
            held: ids of the users whose queries are held.
            path: file of the frozen queries, for the message.

        Returns:
            Facts: counts of users frozen, held and missing, and ids of the first missing ones.

        Raises:
            InputError: no user is held.
        """
        frozen = np.unique(self.user_F)
        missing = np.setdiff1d(frozen, held)
        if len(missing) == len(frozen):
            raise InputError(
                f"split.frozen = {str(path)!r}: none of its {len(frozen):,} users has the ratings it was made of; "
                "use it with the dataset, seed and split.tie_order of the run it came from, or freeze that run again"
            )
        write_json(out / ASKED, {"users": np.sort(held).tolist()})
        return {
            "viewers": len(frozen),
            "held": len(held),
            "missing": len(missing),
            "missing_viewers": missing[:_NAMED].tolist(),
        }


def freeze_queries(split: Path, num_viewers: int, seed: int) -> pl.DataFrame:
    """Return the valid and test queries of a finished split.

    Args:
        split: its folder.
        num_viewers: users drawn among those with a test query, by a hash of their ids; 0 takes all.
        seed: of the hash.

    Returns:
        ``schemas.FROZEN``, sorted by user, purpose and position.

    Raises:
        InputError: the folder holds no split, or one without a test query.
    """
    files = list(split_files(split).values())
    users = _draw(files, split, num_viewers, seed)
    parts = []
    for path in files:  # one at a time: all rows of ml-32m would take a gigabyte
        rows = read_parquet(path, hive_partitioning=False, columns=list(SPLIT))
        mine = rows.filter(pl.col("user_id").is_in(users.implode())).sort("user_id", "position")
        columns = (mine[name].to_numpy() for name in ("movie_id", "rating", "timestamp", "position"))
        hashed = mine.with_columns(evidence=pl.Series(_evidence(*columns), dtype=pl.UInt64))
        asked = hashed.filter(pl.col("label").is_in(["valid", "test"]))
        parts.append(conform(asked.with_columns(purpose=pl.col("label").cast(pl.String)), FROZEN))
    return pl.concat(parts).sort(_ORDER)


def _draw(files: list[Path], split: Path, num_viewers: int, seed: int) -> pl.Series:
    rows = scan_parquet(files, hive_partitioning=False)
    asked = rows.filter(pl.col("label") == "test").select("user_id").unique().collect(engine="streaming")["user_id"]
    if (split / ASKED).is_file():  # the split itself has a frozen set
        asked = asked.filter(asked.is_in(json.loads((split / ASKED).read_text(encoding="utf-8"))["users"]))
    if asked.is_empty():
        raise InputError(f"{split} has no test query; freeze a run that has")
    drawn = asked.to_frame().with_columns(order=pl.Series(mix(asked.to_numpy(), seed + _CHOICE))).sort("order")
    return (drawn.head(num_viewers) if num_viewers else drawn)["user_id"].sort()


def _evidence(
    movie_R: npt.NDArray[Any], rating_R: npt.NDArray[Any], time_R: npt.NDArray[Any], position_R: npt.NDArray[Any]
) -> UInt64Array:
    """Hash of a user's rows up to each row, in their order; takes whole histories, grouped by user. Shape (R,)."""
    hash_R = pair_hash(pair_hash(movie_R, time_R, 0).view(np.int64), rating_R.astype(np.float32).view(np.int32), 2)
    hash_R = pair_hash(hash_R.view(np.int64), position_R, 4)
    sum_R = np.cumsum(hash_R, dtype=np.uint64)
    first_R = np.arange(len(sum_R)) - position_R
    return np.asarray(sum_R - sum_R[first_R] + hash_R[first_R])


def _require_windows(frozen: pl.DataFrame, path: Path, settings: SplitConfig) -> None:
    """Raise ConfigError for a frozen answer before this run's ``valid_from``: fits train on all likes before it."""
    assert settings.valid_from, "SplitConfig requires both days for this protocol"
    assert settings.test_from
    for purpose, field in (("valid", "valid_from"), ("test", "test_from")):
        day = getattr(settings, field)
        early = frozen.filter(pl.col("purpose") == purpose, pl.col("timestamp") < midnight(day))
        if len(early):
            raise ConfigError(
                f"split.{field} = {day} is after {len(early)} {purpose} answers of split.frozen = {str(path)!r}; set "
                "the days of the run it came from, or freeze a run with these"
            )
