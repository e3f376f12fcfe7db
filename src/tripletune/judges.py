"""Halves of the users in valid: those whose examples judge an adapter, and those whose examples select what is tuned.

An adapter whose weight or settings were chosen on the users who admit it would look better than it is.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from tripletune.stable_hash import mix

_JUDGES = 16 << 40
"""Added to the run's seed, so that the halves have nothing in common with any other order of users."""


def judges(users: pl.Series, seed: int) -> pl.Series:
    """Whether each user judges, by a hash: half of them."""
    return pl.Series(mix(users.to_numpy(), seed + _JUDGES) >> np.uint64(63) == 1)
