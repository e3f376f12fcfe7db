"""Columns of the files that every trained model writes."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns

TRAINED_ON = columns({"user_id": pl.Int32, "movie_id": pl.Int32, "fit": pl.String})
"""rgat|lightgcn|sasrec|ease/trained_on.parquet: the likes each fit (``a`` or ``b``) was really trained on; the audit
reads it. Sorted by fit and user; of what is trained by steps a user's likes stand oldest first, and those of lightgcn
make the similar viewers."""

CURVE = columns({"fit": pl.String, "step": pl.Int32, "loss": pl.Float64, "valid_ndcg_at_10": pl.Float64})
"""rgat|lightgcn|sasrec/curve.parquet: one row per evaluation; ``valid_ndcg_at_10`` is null for fit a, which must not
look.

Columns:
    step: training steps done
    loss: training loss at the step
    valid_ndcg_at_10: of fit b on valid; null for fit a
"""
