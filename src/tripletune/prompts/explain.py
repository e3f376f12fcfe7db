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
) -> list[tuple[str, str]]:
    """Each line of an example's user message with its origin.

    Args:
        example: one row of ``EXAMPLES`` as a dict.
        template: the template it was rendered with.
        positions: position in the user's own rows by movie id; shown next to liked and disliked films.
        scores: score of a triple (``score`` of ``CHOICES``); shown next to the facts of hint 2.

    Returns:
        ``(line, origin)`` in order. Origins read ``template``, ``liked: movie 6, position 12``, ``hint 1: movie 6,
        LightGCN rank 3``, ``hint 1: movie 6, similar users liked it``, ``hint 2: movie 6, director
        person:nm0000520, score -0.31``, ``candidate: movie 6``, and ``<slot>: nothing to show``.
    """
    lines = iter(example["prompt"][1]["content"].split("\n"))
    origins: list[str] = []
    for line in template.user.split("\n"):
        slot = line.strip("{}")
        is_slot = slot in template.slots and line == f"{{{slot}}}"
        origins += _origins(example, slot, positions or {}, scores or {}) if is_slot else ["template"]
    return list(zip(lines, origins, strict=True))


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
    match slot:
        case "triples":
            keys = [(item["movie_id"], item["relation"], item["entity"]) for item in items]
            scored = {key: f", score {scores[key]:.4g}" for key in keys if key in scores}
            return [f"hint 2: movie {key[0]}, {key[1]} {key[2]}{scored.get(key, '')}" for key in keys]
        case "candidates":
            return [f"candidate: movie {movie}" for movie in items]
        case _:
            place = {movie: f", position {positions[movie]}" for movie in items if movie in positions}
            return [f"{slot}: movie {movie}{place.get(movie, '')}" for movie in items]
