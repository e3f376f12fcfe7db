"""Origin of every line of a prompt, for ``recommend --explain``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tripletune.prompts.template import Template
from tripletune.schemas.hints import HINT_OF

TripleKey = tuple[int, str, str]
"""Movie id, relation, entity key."""


def explain_lines(
    example: Mapping[str, Any],
    template: Template,
    *,
    positions: Mapping[int, int] | None = None,
    scores: Mapping[TripleKey, float] | None = None,
    worked: str = "",
) -> list[tuple[str, str]]:
    """Each line of an example's user message with its origin.

    Args:
        example: one row of ``EXAMPLES`` as a dict.
        template: the template it was rendered with.
        positions: position in the user's own rows by movie id; shown next to liked and disliked films.
        scores: score of a triple (``score`` of ``CHOICES``); shown next to the facts of hint 2.
        worked: the worked examples in the template's text; empty: there are none.

    Returns:
        ``(line, origin)`` in order. Origins read ``template``, ``worked example``, ``liked: movie 6, position 12``,
        ``hint 1: movie 6, LightGCN rank 3``, ``hint 1: movie 6, similar users liked it``, ``hint 2: movie 6, director
        person:nm0000520, score -0.31``, ``candidate: movie 6``, and ``<slot>: nothing to show``. With inline hints a
        candidate's line reads ``candidate: movie 6, retriever rank 3, LightGCN rank 1, director person:nm0000520``.
    """
    lines = iter(example["prompt"][1]["content"].split("\n"))
    origins: list[str] = []
    before = template.user.partition(worked)[0].count("\n") if worked else 0
    shown = range(before, before + worked.count("\n") + 1) if worked else range(0)
    for number, line in enumerate(template.user.split("\n")):
        if number in shown:
            origins.append("worked example")
            continue
        slot = line.strip("{}")
        is_slot = slot in template.slots and line == f"{{{slot}}}"
        if is_slot and slot == "candidates":
            inline = [column for column, _ in template.inline]
            told = [_told_inline(example, column, scores or {}) for column in inline]
            origins += [
                ", ".join([f"candidate: movie {movie}", *(origin for one in told for origin in one.get(movie, ()))])
                for movie in example[slot]
            ] or [f"{slot}: nothing to show"]
        else:
            origins += _origins(example, slot, positions or {}, scores or {}) if is_slot else ["template"]
    return list(zip(lines, origins, strict=True))


def _told_inline(example: Mapping[str, Any], column: str, scores: Mapping[TripleKey, float]) -> dict[int, list[str]]:
    """By movie id, what a candidate's line says from this column."""
    hint = HINT_OF.get(column)
    if hint and hint.kind == "triples":
        facts: dict[int, list[str]] = {}
        for item in example[column]:
            facts.setdefault(item["movie_id"], []).append(_fact(item, scores))
        return facts
    origin = hint.origin if hint else "retriever rank {place}"
    return {movie: [origin.format(place=place)] for place, movie in enumerate(example[column], start=1)}


def _fact(item: Mapping[str, Any], scores: Mapping[TripleKey, float]) -> str:
    key = (item["movie_id"], item["relation"], item["entity"])
    return f"{key[1]} {key[2]}" + (f", score {scores[key]:.4g}" if key in scores else "")


def _origins(
    example: Mapping[str, Any], slot: str, positions: Mapping[int, int], scores: Mapping[TripleKey, float]
) -> list[str]:
    items = example[slot]
    if not items:
        return [f"{slot}: nothing to show"]
    hint = HINT_OF.get(slot)
    if hint and hint.kind == "films":
        about = [(movie, hint.origin.format(place=place)) for place, movie in enumerate(items, start=1)]
        return [f"hint {hint.number}: movie {movie}, {origin}" for movie, origin in about]
    if hint and hint.kind == "topics":
        return [
            f"hint {hint.number}: {item['relation']} {item['entity']}, {item['films']} liked films" for item in items
        ]
    match slot:
        case "triples":
            return [f"hint 2: movie {item['movie_id']}, {_fact(item, scores)}" for item in items]
        case _:
            place = {movie: f", position {positions[movie]}" for movie in items if movie in positions}
            return [f"{slot}: movie {movie}{place.get(movie, '')}" for movie in items]
