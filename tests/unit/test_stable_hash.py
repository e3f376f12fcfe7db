"""The hash that orders ties and draws folds must never change: its values are part of the data."""

from __future__ import annotations

import numpy as np
import polars as pl

from tripletune.stable_hash import mix, pair_hash, pair_hash_expr, share_hash_expr

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """The published generator's first output, in Python integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_agrees_with_the_published_generator():
    assert int(mix([0], 0)[0]) == 0xE220A8397B1DCDAF
    for value in (1, 2**31, 2**62):
        assert int(mix([value], 0)[0]) == splitmix64(value)


def test_column_form_equals_array_form_for_any_integer_width():
    frame = pl.DataFrame({"u": [1, 2, 200_948], "m": [1, 292_757, 3]})
    want = pair_hash(frame["u"], frame["m"], 5).tolist()
    for dtype in (pl.Int32, pl.Int64, pl.UInt32):
        got = frame.cast(dtype).lazy().select(pair_hash_expr("u", "m", 5)).collect(engine="streaming")
        assert got.to_series().to_list() == want


def test_order_of_the_pair_and_seed_count():
    assert pair_hash([1], [2], 0) != pair_hash([2], [1], 0)
    assert pair_hash([1], [2], 0) != pair_hash([1], [2], 1)


def test_shares_are_uniform():
    shares = pl.DataFrame({"u": np.arange(100_000)}).select(share_hash_expr("u", 0)).to_series()
    counts = np.histogram(shares, bins=10, range=(0, 1))[0]
    # 10,000 expected per bin, standard deviation 95
    assert abs(counts - 10_000).max() < 5 * 95
