"""Ratings in memory, grouped by user and in each user's time order: the input of the split's label rules.

Timestamps are whole seconds and often tie within a user. Ties are ordered by a seeded hash of (user, movie), which is
one-to-one within a user: row order would make the split random, and movie ids leak the answer.
"""

# Shape letters in this file: V users, R ratings, B the users of a block
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tripletune.errors import InputError
from tripletune.schemas.ingest import ORDER, RATINGS
from tripletune.stable_hash import UInt64Array, pair_hash
from tripletune.store.read import read_parquet, scan_parquet

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings grouped by user: the first ``count_V[0]`` rows are those of ``user_ids_V[0]``, and so on.

    The id is stored once per user, not once per rating: it is a sixth of the columns' bytes, and values that depend on
    the user alone (bucket, unseen, hash of the user) are computed 160 times less often.
    """

    user_ids_V: npt.NDArray[np.int32]
    count_V: Ints
    first_V: Ints
    """Row of each user's first rating."""
    movie_R: npt.NDArray[np.int32]
    rating_R: npt.NDArray[np.float32]
    time_R: Ints
    place_R: npt.NDArray[np.uint32] | None = None
    """Place in the release's file; only read where it orders ties."""

    @property
    def num_viewers(self) -> int:
        """Users, V."""
        return len(self.user_ids_V)

    @property
    def num_ratings(self) -> int:
        """Rows of all users, R."""
        return len(self.movie_R)

    def per_row(self, value_V: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Repeat a value of each user on each of its rows; shape (R,)."""
        return np.repeat(value_V, self.count_V)

    def keep(self, kept_R: npt.NDArray[np.bool_]) -> Ratings:
        """Some of the ratings; users left without any are dropped."""
        count_V = np.add.reduceat(kept_R, self.first_V, dtype=np.int64) if self.num_ratings else self.count_V
        left_V = count_V > 0
        count_V = count_V[left_V]
        return Ratings(
            self.user_ids_V[left_V],
            count_V,
            np.cumsum(count_V) - count_V,
            self.movie_R[kept_R],
            self.rating_R[kept_R],
            self.time_R[kept_R],
            None if self.place_R is None else self.place_R[kept_R],
        )


def read_ratings(path: Path, order: Path | None = None) -> Ratings:
    """Read a Parquet file of schema RATINGS, column by column, so that all of them never exist twice in memory.

    Args:
        path: sorted by user; any order within a user.
        order: file of schema ORDER; None where the ratings' places in the release are not needed.

    Raises:
        InputError: the file is not sorted by user.
    """
    scan = scan_parquet(path, schema=RATINGS)
    columns = {name: scan.select(name).collect().to_series().rechunk().to_numpy() for name in RATINGS}
    user_R = columns.pop("user_id")
    if (user_R[1:] < user_R[:-1]).any():
        raise InputError(f"{path} is not sorted by user_id; run ingest again")
    first_V = np.flatnonzero(np.diff(user_R, prepend=user_R[:1] - 1))
    count_V = np.diff(first_V, append=len(user_R))
    return Ratings(
        user_R[first_V],
        count_V,
        first_V,
        columns["movie_id"],
        columns["rating"],
        columns["timestamp"],
        read_parquet(order, schema=ORDER)["row"].rechunk().to_numpy() if order else None,
    )


def in_time_order(
    ratings: Ratings, users_B: Ints, *, tie_order: Literal["hash", "movie_id", "file"], seed: int
) -> Ratings:
    """Select the ratings of some users, each user's oldest first.

    Args:
        ratings: a user rates a film at most once.
        users_B: numbers of users; their order is kept.
        tie_order: order of a user's ratings with the same timestamp.
        seed: of the hash.
    """
    user_ids_V, count_V = ratings.user_ids_V[users_B], ratings.count_V[users_B]
    first_V = np.cumsum(count_V) - count_V
    num_ratings = int(count_V.sum())
    row_R = np.repeat(ratings.first_V[users_B] - first_V, count_V) + np.arange(num_ratings)
    movie_R, time_R = ratings.movie_R[row_R], ratings.time_R[row_R]
    if tie_order == "hash":
        tie_R = pair_hash(np.repeat(user_ids_V, count_V), movie_R, seed)
    elif tie_order == "file":
        assert ratings.place_R is not None, "read_ratings was given the order"
        tie_R = ratings.place_R[row_R].astype(np.uint64) << np.uint64(32)
    else:
        tie_R = movie_R.astype(np.uint64) << np.uint64(33)  # ids have 31 bits: the most significant ones come first
    order_R = _sort_within(count_V, time_R, tie_R)
    return Ratings(user_ids_V, count_V, first_V, movie_R[order_R], ratings.rating_R[row_R[order_R]], time_R[order_R])


def _sort_within(count_V: Ints, time_R: Ints, tie_R: UInt64Array) -> Ints:
    """Permutation that sorts rows by (user, time, tie).

    numpy sorts one integer several times faster than three columns, so the three are packed into one: the number of
    the user, the seconds since the earliest rating, and as many leading bits of the tie as fit. The few rows with equal
    keys are then ordered by their whole ties.
    """
    if not len(time_R):
        return np.empty(0, np.int64)
    user_bits = int(len(count_V) - 1).bit_length()
    time_bits = int(time_R.max() - time_R.min()).bit_length()
    tie_bits = 64 - user_bits - time_bits
    assert tie_bits > 0, "times lie within years 1 to 9999 (39 bits), and a block has far fewer than 2**25 users"
    key_R = np.repeat(np.arange(len(count_V), dtype=np.uint64) << np.uint64(time_bits), count_V)
    key_R += (time_R - time_R.min()).view(np.uint64)
    key_R <<= np.uint64(tie_bits)
    key_R |= tie_R >> np.uint64(64 - tie_bits)
    order_R = np.argsort(key_R)
    key_R = key_R[order_R]
    equal_R = np.flatnonzero(key_R[1:] == key_R[:-1])
    if len(equal_R):
        alike = np.union1d(equal_R, equal_R + 1)
        rows = order_R[alike]
        order_R[alike] = rows[np.lexsort((tie_R[rows], key_R[alike]))]
    return order_R
