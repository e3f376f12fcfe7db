"""Declaration of a hint: a list of films, triples or topics that a specialist adds to a prompt.

A declaration is data, used by everything that handles hints: the columns of retrieve and generate are assembled from
``hints.HINTS``, a template may have a section of a hint's name, ``prompts`` draws the lines of its kind, the token
budget shortens it if allowed, and ``audit`` checks its rules with code of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import polars as pl

HintKind = Literal["films", "triples", "topics"]

TRIPLE = pl.Struct({"movie_id": pl.Int32, "relation": pl.String, "entity": pl.String, "entity_name": pl.String})
TOPIC = pl.Struct(
    {"relation": pl.String, "entity": pl.String, "entity_name": pl.String, "films": pl.Int32, "recent": pl.Int32}
)
"""A fact that many liked films share, the number of these films, and how many of them are among the newest likes."""
TOPICS = pl.List(TOPIC)
NEWEST_LIKES = 10
"""Likes that count as recent in a topic; the templates' words say the number."""
DTYPES: dict[HintKind, pl.DataType] = {"films": pl.List(pl.Int32), "triples": pl.List(TRIPLE), "topics": TOPICS}
"""Type of a hint's column, by kind."""
EVIDENCE = ("liked", "disliked")
"""Columns and sections of the films that the user rated before the cutoff, newest first."""
_TAKEN = (
    *EVIDENCE,
    "candidates",
    "retrieved",
    "answers",
    "answer",
    "completion",
    "prompt",
    "system",
    "words",
    "inline",
)
_NAME = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Specialist:
    """A trained model that writes hints."""

    stage: str
    """Stage that trains it; the column of this name holds the stage's fingerprint."""
    label: str
    """Name in text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """One section of hints: its column, its lines, and the rules that it must keep.

    Raises:
        ValueError: the name is no word of lower-case letters, or it is another column's or part's.
    """

    name: str
    """Name of its section and slot in templates, and of its column."""
    number: int
    """Number of the hint in text, as in "hint 1"; two sections may share one."""
    specialist: Specialist
    kind: HintKind
    """films, topics: a column of this name in retrieve's rows; triples: those that retrieve chose (``CHOICES``)."""
    meaning: str
    """Description of the column for the data card."""
    numbered: bool = False
    """Whether its lines are numbered; else they are bullets. For films."""
    origin: str = ""
    """Description of a line when a prompt is explained; ``{place}`` is its place, from 1. For films."""
    computed_by: str = ""
    """Module of ``retrieve`` that computes it, see ``retrieve.further_hints``; empty for those that retrieve computes
    itself. For films."""
    settings: tuple[str, ...] = ()
    """Fields of ``[retrieve]`` that shape it, in which prompts and adapter must agree."""
    shortened: bool
    """Whether the token budget may drop lines: the last films or topics, or the triples about a dropped like."""
    masked: bool
    """Audit rule: it holds no film that the user rated before the cutoff."""
    within: tuple[str, ...] = ()
    """Audit rule: it is only about films of these columns; empty: any film."""
    liked_in_fit: str = ""
    """Audit rule: each film was liked by some user in the rows that the specialist's fit was trained on; the text names
    a film that breaks it in the leak's kind. Empty: no such rule."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _TAKEN:
            raise ValueError(f"hint {self.name!r}: its name must be lower-case letters and none of {', '.join(_TAKEN)}")

    @property
    def dtype(self) -> pl.DataType:
        """Type of its column."""
        return DTYPES[self.kind]


LIGHTGCN = Specialist(stage="lightgcn", label="LightGCN")
RGAT = Specialist(stage="rgat", label="R-GAT")
