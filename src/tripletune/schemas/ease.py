"""Columns of the ease stage's own files."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns

EASE_FILMS = columns({"fit": pl.String, "row": pl.Int32, "movie_id": pl.Int32})
"""ease/movies.parquet: the film of each row and column of a fit's weights.

Columns:
    row: row and column of the weights, from 0
"""
