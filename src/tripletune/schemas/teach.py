"""Columns of the teach stage's files."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns

TAUGHT = columns({"example_id": pl.String, "films": pl.List(pl.Int32), "scores": pl.List(pl.Float32)})
"""teach/train/shard-NNN.parquet: the teacher's scores of the candidates, one row per training example, in the order of
generate's shard of that name.

Columns:
    example_id: that of generate
    films: the candidates, best first
    scores: their scores in the order that the teacher serves: its labels' logits, or the sum with the retriever's
"""
