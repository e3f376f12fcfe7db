"""The users' values that ``evaluate`` writes, and which of its rows is the one that a run serves."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import polars as pl

from tripletune.schemas.rank import SERVED
from tripletune.store.read import scan_parquet

PER_USER = "per_viewer.parquet"
"""File of the evaluate stage: one line for a row of its tables, a purpose and a user."""
TUNED = "tuned"


def served_row(rows: Collection[str]) -> str:
    """What is served: the tuned model with the retriever's scores where a run has that row, else the tuned model."""
    return SERVED if SERVED in rows else TUNED


def scan_per_user(evaluate: Path) -> pl.LazyFrame:
    """The values of a finished evaluate stage: ``row, purpose, user_id``, ``unseen`` and the metrics."""
    return scan_parquet(evaluate / PER_USER)
