"""Columns of the files written by every trained model."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns

TRAINED_ON = columns({"user_id": pl.Int32, "movie_id": pl.Int32, "fit": pl.String})
"""rgat|lightgcn|sasrec|ease/trained_on.parquet: likes that each fit (``a`` or ``b``) was actually trained on, for the
audit. Sorted by fit and user; for models trained by steps a user's likes are in time order, oldest first. Those of
lightgcn supply the films of similar users."""

READ_BY_NAME = "read_in_training.parquet"
READ_BY = columns({"user_id": pl.Int32, "movie_id": pl.Int32, "fit": pl.String})
"""sequence/read_in_training.parquet: the ratings, no likes, that each fit reads, for the audit. Sorted by fit and user,
and in time order within one."""

CURVE = columns({"fit": pl.String, "step": pl.Int32, "loss": pl.Float64, "valid_ndcg_at_10": pl.Float64})
"""rgat|lightgcn|sasrec/curve.parquet: one row per evaluation; ``valid_ndcg_at_10`` is null for fit a, which is
not evaluated on valid.

Columns:
    step: training steps done
    loss: training loss at the step
    valid_ndcg_at_10: of fit b on valid; null for fit a
"""
