"""Columns of the rank stage's files."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns
from tripletune.schemas.query import PURPOSES

SERVED = "tuned+retriever"
"""The tuned model's scores and the retriever's, added up; of adapters whose contract says how."""
QUANTIZED = {"int8": "tuned-int8", "nf4": "tuned-nf4"}
"""The tuned model with rounded weights, by format; of runs whose ``rank.quantized`` names it."""
ALONE = {form: f"tuned-{form}" for form in ("listwise", "pointwise", "pairwise")}
"""The tuned model asked in one form alone, by form; of adapters with an ensemble, which is ``tuned``."""
SYSTEMS = ("random", "retriever", "untuned", "tuned", *QUANTIZED.values(), *ALONE.values(), SERVED)
ALWAYS = SYSTEMS[:4]
"""Systems of every run."""
SAMPLED = ("untuned", *QUANTIZED.values())
"""Systems that may rank the first of the users alone: ``rank.untuned_viewers``, ``rank.quantized_viewers``."""
UTILITIES = pl.List(pl.Struct(dict.fromkeys(ALONE, pl.Float64)))
"""Of each candidate in the order of the answers, by form; null for a form that was not asked."""
PREDICTIONS = columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "cutoff": pl.Int32,
        "system": pl.String,
        "constrained": pl.Boolean,
        "answers": pl.List(pl.Int32),
        "scores": pl.List(pl.Float32),
        "valid": pl.Boolean,
        "text": pl.String,
    }
)
"""rank/predictions.parquet: candidates in each system's order, one row per query. All of them where the system scores
them, and of ``random`` and ``retriever``; else the distinct candidates parsed from ``text``, five at most.

Columns:
    system: one of SYSTEMS
    constrained: whether decoding was constrained to the candidates
    answers: candidates, best first
    scores: their scores, where the system gives one to each: the labels' logits (with vLLM minus one number
        for each query: log-probabilities among the candidates), or the sum with the retriever's; with an ensemble
        the sum of the forms' utilities, or one form's
    valid: the text is exactly the requested number of distinct candidates and nothing else
    text: output of the model
"""
