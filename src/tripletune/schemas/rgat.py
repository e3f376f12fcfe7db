"""Columns of the rgat stage's own files."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns

ATTENTION = columns(
    {"fit": pl.String, "movie_id": pl.Int32, "relation": pl.String, "entity": pl.String, "alpha": pl.Float32}
)
"""rgat/attention.parquet: weight of each real triple of a film, renormalised to sum to one per film.

Columns:
    relation: name of the relation
    entity: key of the entity
    alpha: attention weight
"""
