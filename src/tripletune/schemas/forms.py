"""Columns of the forms stage's file."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns
from tripletune.schemas.generate import EXAMPLES

_OF_EXAMPLES = (
    *("user_id", "purpose", "cutoff", "prompt", "completion", "answers", "answer_ratings"),
    *("candidates", "candidate_titles", "candidate_letters", "retrieved", "template_id", "template_sha256"),
)
FORMS = columns(
    {"example_id": pl.String, "form": pl.String, "of": pl.String, **{name: EXAMPLES[name] for name in _OF_EXAMPLES}}
)
"""forms/train/shard-NNN.parquet: training examples of the short forms, in the order of the shards that they come from.

Columns:
    example_id: ``<of>:<form>``; unique
    form: pointwise or pairwise, see ``tripletune.forms``
    of: the example of the generate stage that it is cut from
    answers: of its candidates, those that are answers of that example: one or none (pointwise), or one (pairwise)
    candidates: the film asked about, or the two films in the order shown
    candidate_letters: the labels that it is answered with: Yes and No, or A and B
The others as in ``EXAMPLES``.
"""
