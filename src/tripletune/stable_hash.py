"""A seeded integer hash of (user, movie) or of a user that never changes.

Polars' own ``hash`` differs between versions and Python's between processes; ties in time, folds and shuffles must not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

UInt64Array = npt.NDArray[np.uint64]

TIES = 1 << 40
"""Added to the run's seed for the order of ties; the split orders equal times by the plain seed, and a film's place
among ties must reveal nothing about that order."""
VIEWERS = 6 << 40
"""Added to the run's seed for the order of users, of whom the first so many are evaluated."""


def mix(values: npt.ArrayLike, seed: int) -> UInt64Array:
    """SplitMix64 of each integer (Steele, Lea & Flood, OOPSLA 2014), started from ``seed``.

    Args:
        values: integers of any shape; negative ones wrap.
        seed: 0 <= seed < 2**63.

    Returns:
        uint64 of the same shape, uniform over all 64 bits.
    """
    with np.errstate(over="ignore"):
        x = np.asarray(values).astype(np.int64).astype(np.uint64) + _GOLDEN * np.uint64(seed + 1)
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        return np.asarray(x ^ (x >> np.uint64(31)))


def tie_order(ids: npt.ArrayLike, seed: int) -> npt.NDArray[np.int64]:
    """Places of ids in the order that breaks ties between them: by a hash, then by the id where hashes are equal."""
    return np.lexsort((np.asarray(ids), mix(ids, seed + TIES)))


def pair_hash(first: npt.ArrayLike, second: npt.ArrayLike, seed: int) -> UInt64Array:
    """Hash of pairs of integers; (a, b) and (b, a) differ."""
    return mix(mix(first, seed).astype(np.int64) ^ np.asarray(second).astype(np.int64), seed + 1)


def pair_hash_expr(first: str, second: str, seed: int) -> pl.Expr:
    """``pair_hash`` of two integer columns as a polars expression, dtype UInt64."""
    return pl.struct(first, second).map_batches(
        lambda pairs: pl.Series(pair_hash(pairs.struct.field(first), pairs.struct.field(second), seed)),
        return_dtype=pl.UInt64,
        is_elementwise=True,
    )


def share_hash_expr(column: str, seed: int) -> pl.Expr:
    """A number in [0, 1) per value of an integer column; compare with a share to draw a stable fold."""
    return pl.col(column).map_batches(
        lambda values: pl.Series((mix(values, seed) >> np.uint64(11)).astype(np.float64) / 2.0**53),
        return_dtype=pl.Float64,
        is_elementwise=True,
    )


def exponential(values: npt.ArrayLike, number: int, seed: int) -> npt.NDArray[np.float64]:
    """The ``number``-th independent draw from Exp(1) of each integer; above 0, finite.

    Divided by weights and sorted, such draws are a sample without replacement with these weights (Efraimidis &
    Spirakis, IPL 2006) that changes by at most one when an integer joins.
    """
    values = np.asarray(values)
    uniform = (pair_hash(values, np.full(values.shape, number), seed) >> np.uint64(11)).astype(np.float64) + 0.5
    return np.asarray(-np.log(uniform / 2.0**53))
