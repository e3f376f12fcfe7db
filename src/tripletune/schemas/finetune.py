"""Columns of the finetune stage's record of what an adapter was trained on."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns

TRAINED_EXAMPLES_NAME = "trained_examples.parquet"
TRAINED_EXAMPLES = columns(
    {
        "user_id": pl.Int32,
        "cutoff": pl.Int32,
        "answers": pl.List(pl.Int32),
        "films": pl.List(pl.Int32),
        "generation": pl.Int16,
    }
)
"""finetune/trained_examples.parquet: every example that the adapter or one of its ancestors was trained on, sorted by
user, cutoff and generation. It holds the ancestors' rows too, so that it says all when their outputs are gone.

Columns:
    answers: the example's answers, sorted by movie id
    films: the user's likes that the example asked for or showed, sorted
    generation: the training that read it: 0 for that of the fresh adapter, the greatest for the adapter's own
"""
