"""Columns of the forms stage's file."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns
from tripletune.schemas.generate import EXAMPLE_COLUMNS, EXAMPLES

_OF_EXAMPLES = (
    *("user_id", "purpose", "cutoff", "prompt", "completion", "answers", "answer_ratings"),
    *("candidates", "candidate_titles", "candidate_letters", "retrieved", "template_id", "template_sha256"),
)
FORMS = columns(
    {"example_id": pl.String, "form": pl.String, "of": pl.String, **{name: EXAMPLES[name] for name in _OF_EXAMPLES}}
)
"""forms/train/shard-NNN.parquet: training examples of the short forms, in the order of the shards that they are cut
from; column by column in ``FORM_COLUMNS``."""
FORM_COLUMNS = {
    **{name: EXAMPLE_COLUMNS[name] for name in _OF_EXAMPLES},
    "example_id": "`<of>:<form>`; unique",
    "form": "pointwise, a question about one film, or pairwise, a choice between two",
    "of": "example of the generate stage that it is cut from",
    "completion": "chat message: one of the labels",
    "answers": "of its films those that are answers of that example: one or none (pointwise), or one (pairwise)",
    "candidates": "the film asked about, or the two films in the order shown",
    "candidate_letters": "the labels that it is answered with: Yes and No, or A and B",
    "retrieved": "its films in the retriever's order",
}
"""Meaning of each column of ``FORMS``."""
