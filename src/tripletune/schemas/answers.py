"""Answer styles: how a prompt labels its candidates, and how an answer names them.

A style is declared here once and referred to by name elsewhere: a template names its style, ``prompts`` writes it, the
manifest of the shards and the adapter's contract record it, and ``rank`` and ``audit`` read it from there. Shards of
every style have the same columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from string import ascii_uppercase

from tripletune.errors import ConfigError

NUM_ANSWERS = 5
"""Films that a completion names; the templates request this many in words."""

NUM_LETTERS = len(ascii_uppercase)
"""Candidates that have labels of one letter."""

_NUMBERED = re.compile(r"\s*(\d+)\s*[.)]\s*(.*?)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStyle:
    """Format of an answer: one line for each film, which names a candidate."""

    name: str
    """Value of ``answers:`` in a template."""
    labels: Callable[[int], list[str]] | None = None
    """Number of candidates -> distinct labels in the order shown; each is put before its title, as ``A. Heat (1995)``,
    and the lines of an answer are labels. None: candidates are bullets, and answers copy their titles."""
    numbered: bool
    """Whether a line of an answer begins with its number."""

    @property
    def is_labelled(self) -> bool:
        """Whether answers name candidates by labels."""
        return self.labels is not None

    def line(self, number: int, name: str) -> str:
        """Line ``number`` (from 1) of an answer, which names a candidate by ``name``."""
        return f"{number}. {name}" if self.numbered else name

    def name_in(self, line: str) -> str:
        """Name in a line of an answer; empty if the line has no such form."""
        if not self.numbered:
            return line.strip()
        match = _NUMBERED.fullmatch(line)
        return match[2] if match else ""


def candidate_letters(number: int) -> list[str]:
    """Labels of ``number`` candidates in the order shown: A to Z, or AA, AB, ... for all if there are more than 26.

    All have the same length, so that no label is a prefix of another and all cost an answer the same.
    """
    if number <= NUM_LETTERS:
        return list(ascii_uppercase[:number])
    return ["".join(pair) for pair, _ in zip(product(ascii_uppercase, repeat=2), range(number), strict=False)]


YES_NO = ("Yes", "No")
"""Labels of a prompt about a single film, see ``tripletune.forms``: whether the user will like it."""

TITLES = AnswerStyle(name="titles", numbered=True)
"""Numbered lines with the candidates' titles, as published."""
LETTERS = AnswerStyle(name="letters", labels=candidate_letters, numbered=False)
"""Letters of the candidates, each alone on its line."""

ANSWER_STYLES = {style.name: style for style in (TITLES, LETTERS)}
"""Every style by name. A label must form a mark of data: digits and a dot, or one or two capitals and a dot."""


def answer_style(name: str) -> AnswerStyle:
    """The style of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ANSWER_STYLES:
        raise ConfigError(f"there is no answer style {name!r}; the styles are {', '.join(ANSWER_STYLES)}")
    return ANSWER_STYLES[name]
