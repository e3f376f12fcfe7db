"""Answer styles: how a prompt labels its candidates, and how an answer names them.

A style is declared here once and known by name everywhere else: a template names its style, ``prompts`` writes in it,
the manifest of the shards and the adapter's contract state it, and ``rank`` and ``audit`` get it from there. Shards of
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
"""Films that a completion names; the templates ask for this many in words."""

_NUMBERED = re.compile(r"\s*(\d+)\s*[.)]\s*(.*?)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStyle:
    """One way of answering: a line for each film, which names a candidate."""

    name: str
    """What a template says after ``answers:``."""
    labels: Callable[[int], list[str]] | None = None
    """Labels of so many candidates in the order shown, distinct; each stands before its title, as ``A. Heat (1995)``,
    and the lines of an answer consist of them. None: candidates are bullets, and answers copy their titles."""
    numbered: bool
    """Whether a line of an answer begins with its number."""

    @property
    def is_labelled(self) -> bool:
        """Whether answers name candidates by labels."""
        return self.labels is not None

    def line(self, number: int, name: str) -> str:
        """Line ``number`` (from 1) of an answer that names a candidate so."""
        return f"{number}. {name}" if self.numbered else name

    def name_in(self, line: str) -> str:
        """What a line of an answer, however it was written, names; empty where it has no such form."""
        if not self.numbered:
            return line.strip()
        match = _NUMBERED.fullmatch(line)
        return match[2] if match else ""


def candidate_letters(number: int) -> list[str]:
    """Labels of so many candidates in the order shown: A to Z, or AA, AB, ... for all of them when they are more.

    One length for all: no label begins another, and none is longer to say.
    """
    if number <= len(ascii_uppercase):
        return list(ascii_uppercase[:number])
    return ["".join(pair) for pair, _ in zip(product(ascii_uppercase, repeat=2), range(number), strict=False)]


TITLES = AnswerStyle(name="titles", numbered=True)
"""As published: numbered lines with the candidates' titles."""
LETTERS = AnswerStyle(name="letters", labels=candidate_letters, numbered=False)
"""The candidates' letters, each alone on its line."""

ANSWER_STYLES = {style.name: style for style in (TITLES, LETTERS)}
"""Every style by its name. A label must read as a mark of data: digits and a dot, or one or two capitals and a dot."""


def answer_style(name: str) -> AnswerStyle:
    """The style of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ANSWER_STYLES:
        raise ConfigError(f"there is no answer style {name!r}; the styles are {', '.join(ANSWER_STYLES)}")
    return ANSWER_STYLES[name]
