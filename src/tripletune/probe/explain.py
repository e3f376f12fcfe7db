"""What the first answer to one prompt relied on: each part, and each fact, is rendered away in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from tripletune.probe.changes import Variant, control_variants, fact_variants, part_variants
from tripletune.probe.inputs import Inputs, rendered_as_published
from tripletune.probe.scores import Scored, change, score_prompts
from tripletune.prompts.engine import Frame
from tripletune.schemas.probe import RELIANCE_NAME
from tripletune.schemas.rank import SERVED

if TYPE_CHECKING:
    from tripletune.rank.answerer import Answerer


@dataclass(frozen=True, slots=True)
class Relied:
    """One part of the prompt."""

    part: str
    """The part, or the fact in words."""
    change: float
    """What the part adds to the first answer's log-probability among the candidates, in nats."""
    instead: str
    """Title of the first answer without the part; empty: the same."""


@dataclass(frozen=True, slots=True)
class Reliance:
    """Parts of a prompt by how much they change its first answer's log-probability, those that change most first."""

    system: str
    """Whose answer is explained: what is served, or ``tuned`` where the retriever's order alone is served."""
    title: str
    """The first answer."""
    parts: tuple[Relied, ...]
    control: Relied
    """Of the whole prompt scored again, among the others: what the batch changes, so less than that says nothing."""


def explain_answer(example: pl.DataFrame, answerer: Answerer, frame: Frame, *, batch_size: int) -> Reliance:
    """What the first answer to an example relied on, in about as many forward passes as its prompt has parts.

    Args:
        example: one row of ``EXAMPLES``.
        answerer: the tuned model.
        frame: that rendered the example.
        batch_size: changed prompts answered together; the example itself is answered alone.
    """
    inputs = Inputs.of(example, frame)
    whole = rendered_as_published(inputs, example)
    control, _ = control_variants(whole, [0], [])
    variants = [
        control,
        *part_variants(inputs, whole, [0], None),
        *fact_variants(inputs, whole, [0], len(inputs.choices), None),
    ]
    changed = pl.concat(variant.prompts.drop("row") for variant in variants)
    answered = pl.concat([answerer.score(whole, batch_size=1), answerer.score(changed, batch_size=batch_size)])
    residual = answerer.contract.residual
    scored = score_prompts(pl.concat([whole, changed]), answered, residual)
    system = SERVED if residual and residual.weight else "tuned"
    titles: dict[int, str] = dict(frame.titles.select("movie_id", "display").iter_rows())
    return _sorted(system, titles, variants, scored[system], example)


def _sorted(
    system: str, titles: dict[int, str], variants: Sequence[Variant], scored: Sequence[Scored], example: pl.DataFrame
) -> Reliance:
    before, after = scored[0], iter(scored[1:])
    names = {
        (fact["movie_id"], fact["relation"], fact["entity"]): fact["entity_name"] for fact in example["triples"][0]
    }
    found = []
    for variant in variants:
        for _ in range(len(variant.prompts)):
            other, told = next(after), variant.told[0]
            if variant.log == RELIANCE_NAME:
                part = told["part"]
            else:
                name = names[told["movie_id"], told["relation"], told["entity"]]
                part = f"{titles[told['movie_id']]}: {told['relation']} {name}"
            instead = "" if other.first == before.first else titles[other.first]
            found.append(Relied(part, change(before, other, [before.first]), instead))
    control, *parts = found
    return Reliance(system, titles[before.first], tuple(sorted(parts, key=lambda one: -abs(one.change))), control)
