"""Parts of a prompt, each of which is rendered away: likes, dislikes, each hint, the retriever's places, single facts.

A section without its data says so in the template's words; an inline hint is not there. Without a like, or without
likes, its facts are gone as well. The retriever's places are no list of their own: where candidates' lines show them,
the template is taken without these words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import polars as pl

from tripletune.probe.counterfactual import FACT, FactPool
from tripletune.probe.inputs import NO_FILMS, Inputs
from tripletune.schemas.hints import HINTS, RETRIEVED_HINTS
from tripletune.schemas.query import QUERY_KEY
from tripletune.stable_hash import mix

LIKES, DISLIKES, PLACES, OTHERFACTS = "likes", "dislikes", "retriever's places", "other films' facts"
_DRAW = 20 << 40
"""Added to the run's seed for the draw of an example's facts."""

Change = Callable[[Inputs], Inputs]


def parts_of(columns: tuple[str, ...], pool: FactPool | None) -> dict[str, Change]:
    """How each part is rendered away, by its name, of the parts that a template has.

    Args:
        columns: that the template shows (``Template.columns``).
        pool: facts of all films, for ``OTHERFACTS``; None: without that part.
    """
    parts: dict[str, Change] = {}
    for name, column in ((LIKES, "liked"), (DISLIKES, "disliked")):
        if column in columns:
            parts[name] = _without_evidence(column)
    for number in sorted({hint.number for hint in HINTS if hint.name in columns}):
        parts[f"hint {number}"] = _without_hint(number)
    if "retrieved" in columns:
        parts[PLACES] = _without_places
    if pool and any(hint.kind == "triples" and hint.name in columns for hint in HINTS):
        parts[OTHERFACTS] = pool.swap
    return parts


def _without_evidence(column: str) -> Change:
    return lambda inputs: inputs.with_changed(evidence=inputs.evidence.with_columns(NO_FILMS.alias(column)))


def _without_hint(number: int) -> Change:
    mine = [hint for hint in RETRIEVED_HINTS if hint.number == number]
    is_facts = any(hint.number == number and hint.kind == "triples" for hint in HINTS)

    def change(inputs: Inputs) -> Inputs:
        return inputs.with_changed(
            retrieved=inputs.retrieved.with_columns(pl.lit([], dtype=hint.dtype).alias(hint.name) for hint in mine),
            choices=inputs.choices.clear() if is_facts else inputs.choices,
        )

    return change


def _without_places(inputs: Inputs) -> Inputs:
    template = inputs.frame.template
    inline = tuple((column, words) for column, words in template.inline if column != "retrieved")
    return inputs.with_changed(frame=replace(inputs.frame, template=replace(template, inline=inline)))


@dataclass(frozen=True, slots=True)
class FactDraw:
    """One fact of each of some examples: the ``number``-th of their draws."""

    facts: pl.DataFrame
    """``QUERY_KEY, movie_id, rank, relation, entity, share``, at most one row per example."""

    def without(self, inputs: Inputs) -> Inputs:
        """The inputs of all examples without these facts."""
        return inputs.with_changed(choices=inputs.choices.join(self.facts, on=FACT, how="anti", maintain_order="left"))


def draw_facts(inputs: Inputs, most: int, seed: int) -> Iterator[FactDraw]:
    """Draw up to ``most`` facts of each example, by a stable hash of the example and the fact, all equally likely.

    Only facts that the prompt shows are given in ``inputs``. The draws are nested: those of a larger ``most`` begin
    with those of a smaller one.
    """
    facts = inputs.choices.select(*FACT, "relation", "entity")
    hashed = mix(mix(facts["user_id"], seed + _DRAW).astype("int64") ^ facts["cutoff"].to_numpy(), 1)
    hashed = mix(hashed.astype("int64") ^ facts["movie_id"].to_numpy() ^ (facts["rank"].to_numpy() << 24), 2)
    number = pl.int_range(pl.len()).over(QUERY_KEY)
    drawn = (
        facts.with_columns(hashed=pl.Series(hashed))
        .sort(*QUERY_KEY, "hashed", "movie_id", "rank")
        .with_columns(number=number, share=(most / pl.len().over(QUERY_KEY)).clip(upper_bound=1.0))
        .filter(pl.col("number") < most)
        .drop("hashed")
    )
    for place in range(most):
        mine = drawn.filter(pl.col("number") == place).drop("number")
        if len(mine):
            yield FactDraw(mine)
