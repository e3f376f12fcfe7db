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
"""rank/predictions.parquet: five films per viewer. ``answers`` are the distinct candidates read from ``text``, in
order; ``valid`` says that the text held exactly the asked number of distinct candidates and nothing else.

Columns:
    system: one of SYSTEMS
    constrained: whether decoding was constrained to the candidates
    answers: distinct candidates read from the text, in order
    valid: the text held exactly the wanted number of distinct candidates, and nothing else
    text: what the model wrote
"""
