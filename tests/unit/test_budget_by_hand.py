"""The token budget with made-up token counts, against films left out one by one and counted again each time."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import polars as pl
import pytest

from tripletune.errors import InputError
from tripletune.prompts.budget import count_left_out, shorten
from tripletune.prompts.render import Lines
from tripletune.schemas.generate import EXAMPLES

SECTIONS = ("liked", "disliked", "similar", "triples")
FIXED = 50
"""Tokens of an example beside its sections."""
EMPTY = {"liked": 2, "disliked": 3, "similar": 5, "triples": 7}


def cost(slot: str, film: int) -> int:
    """Tokens of a film's line, 1 to 5."""
    return (film * 7 + len(slot)) % 5 + 1


class MadeUp:
    """Counts a line as the number it is made of, and the last one of a section twice and one more."""

    sums_lines = True

    def inner(self, section: Lines) -> np.ndarray:
        return section.texts.cast(pl.Int64).to_numpy()

    def last(self, section: Lines, slot: str) -> np.ndarray:
        return 2 * self.inner(section) + 1

    def empty(self, slot: str) -> int:
        return EMPTY[slot]


def example(user: int, **films: list[int]) -> dict[str, Any]:
    row = {name: films.get(name, []) for name in (*SECTIONS, "candidates")}
    facts = [
        {"movie_id": film, "relation": "genre", "entity": "g", "entity_name": f"{film}"} for film in row["triples"]
    ]
    return {
        "example_id": f"{user}:test",
        "user_id": user,
        "purpose": "test",
        "cutoff": 9,
        **row,
        "triples": facts,
        "topics": [],
    }


# film 4 is liked and a candidate, film 3 has two facts; nobody of them has every section full
ROWS = [
    example(1, liked=[1, 2, 3, 4, 5, 6, 7, 8], disliked=[11, 12], similar=[21, 22, 23], candidates=[31, 4],
            triples=[1, 3, 3, 4, 7, 31]),
    example(2, liked=[3, 1, 2], disliked=[11, 12, 13, 14], candidates=[31, 32], triples=[3, 3, 31, 31]),
    example(3, similar=[21, 22, 23, 24, 25], disliked=[15], candidates=[33], triples=[33]),
    example(4, liked=[9], candidates=[31]),
    example(5, liked=[6, 5, 4, 3, 2], similar=[24], candidates=[9], triples=[6, 2]),
]  # fmt: skip
FACT_OF_THE_OLDEST = [example(8, liked=[5, 6, 1, 2], candidates=[31], triples=[2])]
ONLY_OTHERS = [
    example(6, disliked=[11, 12, 13], similar=[21, 22], candidates=[31]),
    example(7, similar=[23], candidates=[31], triples=[31]),
]


def films(row: dict[str, Any], slot: str) -> list[int]:
    return [fact["movie_id"] for fact in row[slot]] if slot == "triples" else row[slot]


def count(row: dict[str, Any], slots: tuple[str, ...]) -> int:
    total = FIXED
    for slot in slots:
        costs = [cost(slot, film) for film in films(row, slot)]
        total += sum(costs[:-1]) + 2 * costs[-1] + 1 if costs else EMPTY[slot]
    return total


def without_one(row: dict[str, Any]) -> dict[str, Any] | None:
    """One film less, by the stated order; None where nothing more may go."""
    lists = {name: list(row[name]) for name in SECTIONS}
    if len(row["liked"]) > 5:
        gone = lists["liked"].pop()
    elif row["disliked"]:
        gone = lists["disliked"].pop()
    elif row["similar"]:
        gone = lists["similar"].pop()
    elif len(row["liked"]) > 1:
        gone = lists["liked"].pop()
    else:
        return None
    if len(lists["liked"]) < len(row["liked"]) and gone not in row["candidates"]:
        lists["triples"] = [fact for fact in row["triples"] if fact["movie_id"] != gone]
    return {**row, **lists}


def all_stages(row: dict[str, Any]) -> list[dict[str, Any]]:
    stages = [row]
    while (following := without_one(stages[-1])) is not None:
        stages.append(following)
    return stages


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={name: EXAMPLES[name] for name in rows[0]})


def lines(rows: list[dict[str, Any]], slots: tuple[str, ...]) -> dict[str, Lines]:
    found = {}
    for slot in slots:
        texts = pl.Series([str(cost(slot, film)) for row in rows for film in films(row, slot)], dtype=pl.String)
        starts = np.array([0, *itertools.accumulate(len(row[slot]) for row in rows)])
        found[slot] = Lines(texts, starts, (texts,))
    return found


def not_needed(examples: pl.DataFrame) -> dict[str, Lines]:
    raise AssertionError("sums over lines are enough")


def cut(rows: list[dict[str, Any]], slots: tuple[str, ...], budget: int) -> pl.DataFrame:
    tokens = np.array([count(row, slots) for row in rows])
    return shorten(frame(rows), lines(rows, slots), MadeUp(), tokens, budget, draw=not_needed)


@pytest.mark.parametrize("slots", [SECTIONS, ("liked", "disliked"), ("similar", "liked"), ("triples", "liked")])
@pytest.mark.parametrize(
    "rows",
    [ROWS, ONLY_OTHERS, FACT_OF_THE_OLDEST, ROWS[3:], ROWS[2:3]],
    ids=["mixed", "no likes", "fact of the oldest", "few", "one"],
)
def test_every_budget_leaves_what_dropping_film_by_film_leaves(rows: list[dict[str, Any]], slots: tuple[str, ...]):
    least = max(min(count(stage, slots) for stage in all_stages(row)) for row in rows)
    most = max(count(row, slots) for row in rows)
    for budget in range(least, most + 2):
        want = [next(stage for stage in all_stages(row) if count(stage, slots) <= budget) for row in rows]
        got = cut(rows, slots, budget)
        # a section that the template lacks loses films too, which nobody sees; facts stand or fall with it
        assert got.drop("triples").rows() == frame(want).drop("triples").rows()
        if "triples" in slots:
            assert got["triples"].to_list() == frame(want)["triples"].to_list()
        left_out = count_left_out(frame(rows), got).struct.unnest()
        for slot in SECTIONS:
            assert left_out[slot].to_list() == [
                len(row[slot]) - len(short) for row, short in zip(rows, got[slot], strict=True)
            ]


def test_the_longest_example_with_nothing_more_to_leave_out_is_named_with_what_it_needs():
    last = [count(all_stages(row)[-1], SECTIONS) for row in ROWS]
    budget = sorted(last)[-3]
    worst = ROWS[last.index(max(last))]["example_id"]
    with pytest.raises(
        InputError,
        match=rf"max_tokens = {budget}: 2 examples are longer .* the longest, {worst}, has {max(last)}; "
        rf"set it to {max(last)} or more",
    ):
        cut(ROWS, SECTIONS, budget)


def test_no_examples_stay_none():
    nobody = frame(ROWS).clear()
    got = shorten(nobody, lines([], SECTIONS), MadeUp(), np.zeros(0, dtype=np.int64), 10, draw=not_needed)
    assert got.equals(nobody)
