"""Render changed prompts of some examples, and compare the answers to each with those to the whole prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tripletune.probe.counterfactual import FactPool
from tripletune.probe.inputs import Inputs, differing
from tripletune.probe.parts import draw_facts, parts_of
from tripletune.probe.perturb import perturbations_of
from tripletune.probe.scores import Scored, change, distance, tau, tau_by_place
from tripletune.schemas.base import conform
from tripletune.schemas.probe import (
    CONTROL,
    FACT_CHANGES,
    FACT_CHANGES_NAME,
    RELIANCE,
    RELIANCE_NAME,
    STABILITY,
    STABILITY_NAME,
)

Row = dict[str, Any]
_KEY = ("example_id", "user_id", "purpose", "cutoff")
_SORTED_BY = {
    RELIANCE_NAME: ("part",),
    FACT_CHANGES_NAME: ("movie_id", "relation", "entity", "how"),
    STABILITY_NAME: ("perturbation",),
}
_SCHEMAS = {RELIANCE_NAME: RELIANCE, FACT_CHANGES_NAME: FACT_CHANGES, STABILITY_NAME: STABILITY}


@dataclass(frozen=True, slots=True)
class Variant:
    """One change of the inputs, and the examples whose prompts it changes."""

    log: str
    """File of its rows."""
    told: Mapping[int, Row]
    """Columns that say what was changed, by the example's row; the examples that it is about."""
    prompts: pl.DataFrame
    """``EXAMPLES`` and ``row``, the example's row; those of ``told`` whose prompt changes."""


def _variant(log: str, told: Mapping[int, Row], inputs: Inputs, whole: pl.DataFrame) -> Variant:
    """Render the inputs and keep the examples of ``told`` whose prompt changes."""
    made = inputs.render()
    changed = [row for row in differing(whole, made) if row in told]
    return Variant(log, told, made.with_row_index("row")[changed])


def part_variants(inputs: Inputs, whole: pl.DataFrame, rows: Iterable[int], pool: FactPool | None) -> list[Variant]:
    """The prompts without each part that the template has, of the examples in ``rows``.

    Args:
        inputs: of all examples.
        whole: the examples as published.
        rows: places in ``whole``.
        pool: other films' facts; None: none takes the place of a film's own.
    """
    asked = list(rows)
    return [
        _variant(RELIANCE_NAME, {row: {"part": name} for row in asked}, without(inputs), whole)
        for name, without in parts_of(inputs.frame.template.columns, pool).items()
    ]


def control_variants(whole: pl.DataFrame, relies: Iterable[int], steady: Iterable[int]) -> list[Variant]:
    """The whole prompts once more: what the numbers are where nothing changes but the batch a prompt is scored in."""
    variants = []
    for log, column, rows in ((RELIANCE_NAME, "part", list(relies)), (STABILITY_NAME, "perturbation", list(steady))):
        told = {row: {column: CONTROL} for row in rows}
        variants.append(Variant(log, told, whole.with_row_index("row")[rows]))
    return variants


def fact_variants(
    inputs: Inputs, whole: pl.DataFrame, rows: Iterable[int], most: int, pool: FactPool | None
) -> Iterator[Variant]:
    """The prompts without each of up to ``most`` facts, and with another film's in its place where there is a pool."""
    row_of, asked = {name: row for row, name in enumerate(whole["example_id"])}, set(rows)
    ids = whole.select("example_id", "user_id", "purpose", "cutoff")
    for draw in draw_facts(inputs, most, inputs.frame.seed):
        facts = draw.facts.join(ids, on=["user_id", "purpose", "cutoff"], how="left", maintain_order="left")
        told = {row_of[fact["example_id"]]: _fact_columns(fact) for fact in facts.to_dicts()}
        told = {row: columns for row, columns in told.items() if row in asked}
        changes: dict[str, Callable[[], Inputs]] = {"without": lambda draw=draw: draw.without(inputs)}  # type: ignore[misc]
        if pool:
            changes["swapped"] = lambda draw=draw: pool.swap(inputs, draw.facts)  # type: ignore[misc]
        for how, changed in changes.items():
            mine = {row: columns | {"how": how} for row, columns in told.items()}
            yield _variant(FACT_CHANGES_NAME, mine, changed(), whole)


def _fact_columns(fact: Row) -> Row:
    return {name: fact[name] for name in ("movie_id", "relation", "entity", "share")}


def perturbed_variants(inputs: Inputs, whole: pl.DataFrame, rows: Iterable[int], names: Sequence[str]) -> list[Variant]:
    """The prompts under each perturbation, of the examples in ``rows``."""
    asked = list(rows)
    return [
        _variant(STABILITY_NAME, {row: {"perturbation": name} for row in asked}, perturb(inputs), whole)
        for name, perturb in perturbations_of(names, inputs).items()
    ]


def compare(
    whole: pl.DataFrame,
    variants: Sequence[Variant],
    before: Mapping[str, Sequence[Scored]],
    after: Mapping[str, Sequence[Scored]],
) -> dict[str, pl.DataFrame]:
    """The logs, by file.

    Args:
        whole: the examples as published.
        variants: of these examples.
        before: by system, the whole prompts' scores.
        after: by system, those of the variants' prompts, one variant after the other.
    """
    examples = whole.select(*_KEY, "answers").to_dicts()
    rows: dict[str, list[Row]] = {name: [] for name in _SCHEMAS}
    for system, scored in after.items():
        found = iter(scored)
        for variant in variants:
            for row in variant.prompts["row"]:
                example = examples[row]
                measured = _measures(variant.log, before[system][row], next(found), example["answers"])
                told = {name: example[name] for name in _KEY} | {"system": system}
                rows[variant.log].append(told | variant.told[row] | measured)
    return {
        name: _table(rows[name], schema).sort("example_id", "system", *_SORTED_BY[name])
        for name, schema in _SCHEMAS.items()
    }


def _table(rows: list[Row], schema: pl.Schema) -> pl.DataFrame:
    return conform(pl.DataFrame(rows, schema_overrides=schema) if rows else schema.to_frame(), schema)


def _measures(log: str, whole: Scored, other: Scored, answers: Sequence[int]) -> Row:
    first_changed = whole.first != other.first
    if log == STABILITY_NAME:
        return {
            "tau": tau(whole, other),
            "tau_by_place": tau_by_place(whole, other),
            "kept": 1.0,
            "first_changed": first_changed,
        }
    return {
        "before": whole.right(answers),
        "change": change(whole, other, answers),
        "distance": distance(whole, other),
        "first_changed": first_changed,
    }
