"""Columns of the rank stage's files."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns
from tripletune.schemas.query import PURPOSES

SYSTEMS = ("random", "retriever", "untuned", "tuned")
PREDICTIONS = columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "system": pl.String,
        "constrained": pl.Boolean,
        "answers": pl.List(pl.Int32),
        "valid": pl.Boolean,
        "text": pl.String,
    }
)
"""rank/predictions.parquet: five films per user. ``answers`` are the distinct candidates parsed from ``text``, in
order; ``valid``: the text is exactly the requested number of distinct candidates and nothing else.

Columns:
    system: one of SYSTEMS
    constrained: whether decoding was constrained to the candidates
    answers: distinct candidates parsed from the text, in order
    valid: the text is exactly the requested number of distinct candidates and nothing else
    text: output of the model
"""
