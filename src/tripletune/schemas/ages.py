"""Age groups of users."""

from __future__ import annotations

from itertools import pairwise

import polars as pl

AGES = (18, 25, 35, 45, 50, 56)
"""First age of each group but the youngest, in years: those of MovieLens 1M, which stores them in place of ages."""
AGE_GROUP = pl.sum_horizontal(pl.col("age") >= first for first in AGES).alias("age_group")
"""Number of a user's age group, the youngest 0."""
AGE_NAMES = (
    f"under {AGES[0]}",
    *(f"{first} to {nxt - 1}" for first, nxt in pairwise(AGES)),
    f"{AGES[-1]} or more",
)
"""Names of the age groups, the youngest first."""
