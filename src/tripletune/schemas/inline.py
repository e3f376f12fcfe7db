"""Declaration of inline hints: what a candidate's line says after the title, such as ``> LightGCN 1``.

A template declares them in its part ``[inline]``; the manifest of the shards states them, so that the audit can compare
the lines of candidates with the columns. ``prompts`` writes them, ``audit`` reads them with code of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INLINE_MARK = ">"
"""Stands between spaces before each inline hint. ``prompts.sanitise`` leaves no angle bracket in a title or name, so
that neither can pass for a hint."""
PLACE, FACT, NAME = "{place}", "{fact}", "{name}"
"""In the words of an inline hint: the film's place in the column, from 1; a fact about the film. In those of a fact:
the entity's name."""
OTHER, RELATION = "other", "{relation}"
"""Key of the words for relations without words of their own, which hold the relation's name."""

Words = tuple[tuple[str, str], ...]
"""Column and words of each inline hint, in the order of the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inline:
    """Inline hints of some shards; empty where candidates' lines are mark and title alone."""

    words: Words = ()
    facts: Mapping[str, str]
    """Relation (or ``OTHER``) -> words of a fact."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the lines of candidates show; none of them has a section."""
        return tuple(column for column, _ in self.words)

    def as_json(self) -> dict[str, Any]:
        """As it stands in the facts of a manifest."""
        return {"words": [list(pair) for pair in self.words], "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, stated: Mapping[str, Any]) -> Inline:
        """Read what ``as_json`` wrote."""
        return cls(words=tuple((column, words) for column, words in stated["words"]), facts=stated["facts"])


NO_INLINE = Inline(words=(), facts={})
