"""The form of a verdict: a question, a word and a sentence."""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """An answer to one question of the report's first part."""

    question: str
    word: str
    """``yes``, ``no``, ``not shown`` or ``not known``."""
    text: str


def signed(value: float) -> str:
    """A difference with its sign and three decimals: -0.000 is a little below 0."""
    return f"{value:+.3f}" if value else "0.000"
