"""Inputs of the prompts of some examples, taken from the shards, so that they can be rendered again with a change.

A changed prompt comes from the renderer of ``generate`` (``build_examples``), never from the text of a finished one.
The inputs are the films and facts that the finished prompt shows, after the token budget dropped some: prompts are not
shortened again, so that nothing but the change differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from tripletune.errors import InputError
from tripletune.prompts.engine import Frame, build_examples
from tripletune.schemas.base import conform
from tripletune.schemas.hints import RETRIEVED_HINTS
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import CHOICES, RETRIEVED

NO_FILMS = pl.lit([], dtype=pl.List(pl.Int32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Arguments of ``build_examples``, of several examples."""

    example_ids: pl.Series
    """Of the examples, in the order of ``QUERY_KEY``."""
    retrieved: pl.DataFrame
    choices: pl.DataFrame
    """``CHOICES``: the facts shown; ``rank`` counts those of a film."""
    evidence: pl.DataFrame
    answers: pl.DataFrame
    frame: Frame

    @classmethod
    def of(cls, examples: pl.DataFrame, frame: Frame) -> Inputs:
        """The inputs of finished examples.

        Args:
            examples: ``EXAMPLES``, sorted by ``QUERY_KEY``.
            frame: of the run that rendered them.
        """
        most = int(examples["liked"].list.len().max() or 0)  # type: ignore[arg-type]  # a column of counts
        # facts of all likes that are shown, wherever the like stands after a change; no others are given
        settings = frame.settings.model_copy(update={"triples_for_liked": most})
        facts = examples.select(*QUERY_KEY, "triples").explode("triples", empty_as_null=False).unnest("triples")
        return cls(
            example_ids=examples["example_id"],
            retrieved=conform(
                examples.select(
                    *QUERY_KEY, "unseen", *(hint.name for hint in RETRIEVED_HINTS), candidates=pl.col("retrieved")
                ),
                RETRIEVED,
            ),
            choices=conform(
                facts.with_columns(
                    rank=pl.int_range(pl.len()).over(*QUERY_KEY, "movie_id"), score=pl.lit(0.0), propensity=pl.lit(1.0)
                ),
                CHOICES,
            ),
            evidence=examples.select(*QUERY_KEY, "liked", "disliked"),
            answers=examples.select(*QUERY_KEY, movie_id="answers", rating="answer_ratings").explode(
                "movie_id", "rating", empty_as_null=False
            ),
            frame=replace(frame, settings=settings, counter=None),
        )

    def with_changed(self, **changed: Any) -> Inputs:
        """A copy with some fields replaced."""
        return replace(self, **changed)

    def render(self) -> pl.DataFrame:
        """``EXAMPLES``, in the order and under the ids of ``example_ids``."""
        made = build_examples(self.retrieved, self.choices, self.evidence, self.answers, self.frame)
        return made.with_columns(example_id=self.example_ids)


def rendered_as_published(inputs: Inputs, examples: pl.DataFrame) -> pl.DataFrame:
    """The examples rendered again without a change, which gives the prompts that were published.

    Raises:
        InputError: a prompt differs, so that a changed prompt would differ by more than the change.
    """
    made = inputs.render()
    if changed := differing(examples, made):
        raise InputError(
            f"the prompt of example {examples['example_id'][changed[0]]} is not rendered again as it was "
            "published, so parts of it can't be taken out one by one; run generate again"
        )
    return made


def differing(examples: pl.DataFrame, others: pl.DataFrame) -> list[int]:
    """Rows whose prompts differ."""
    both = zip(examples["prompt"].to_list(), others["prompt"].to_list(), strict=True)
    return [row for row, (prompt, other) in enumerate(both) if prompt != other]
