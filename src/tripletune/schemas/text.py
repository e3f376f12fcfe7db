"""Columns of the text stage's files."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns

TEXTS = columns({"movie_id": pl.Int32, "text": pl.String})
"""text/texts.parquet, ascending by film: what was embedded; empty for a film that the knowledge graph lacks.

Columns:
    text: title, then the names of the film's entities, relation by relation
"""
