"""What the first answer to one prompt relied on: each part, and each fact, is rendered away in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from tripletune.probe.changes import Variant, fact_variants, part_variants
from tripletune.probe.inputs import Inputs, rendered_as_published
from tripletune.probe.scores import Scored, change, score_prompts
from tripletune.prompts.engine import Frame
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.probe import CONTROL, RELIANCE_NAME
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
    """Of the whole prompt scored again, in another batch: what the batch changes, so less than that says nothing."""


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
    variants = [
        *part_variants(inputs, whole, [0], None),
        *fact_variants(inputs, whole, [0], len(inputs.choices), None),
    ]
    changed = pl.concat([EXAMPLES.to_frame(), *(variant.prompts.drop("row") for variant in variants)])
    answered = [answerer.score(whole, batch_size=1)]
    answered.append(answerer.score(pl.concat([whole, _longer(whole)]), batch_size=2).head(1))
    if len(changed):  # of a user without likes or dislikes a short prompt may have no part to drop
        answered.append(answerer.score(changed, batch_size=batch_size))
    residual = answerer.contract.residual
    scored = score_prompts(pl.concat([whole, whole, changed]), pl.concat(answered), residual)
    system = SERVED if residual and residual.weight else "tuned"
    titles: dict[int, str] = dict(frame.titles.select("movie_id", "display").iter_rows())
    return _sorted(system, titles, variants, scored[system], example)


def _longer(whole: pl.DataFrame) -> pl.DataFrame:
    """The example with the last line of its prompt twice. Next to it the whole prompt is padded, as the changed ones
    are in their batches; among those, which are shorter, it would not be."""
    (chat,) = whole["prompt"].to_list()
    text = chat[-1]["content"]
    longer = [*chat[:-1], {**chat[-1], "content": f"{text}\n{text.splitlines()[-1]}"}]
    return whole.with_columns(prompt=pl.Series([longer], dtype=whole.schema["prompt"]))


def _sorted(
    system: str, titles: dict[int, str], variants: Sequence[Variant], scored: Sequence[Scored], example: pl.DataFrame
) -> Reliance:
    before, again, *others = scored
    after = iter(others)

    def relied(part: str, other: Scored) -> Relied:
        instead = "" if other.first == before.first else titles[other.first]
        return Relied(part, change(before, other, [before.first]), instead)

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
            found.append(relied(part, other))
    parts = tuple(sorted(found, key=lambda one: -abs(one.change)))
    return Reliance(system, titles[before.first], parts, relied(CONTROL, again))
