"""What a hint is: a list of films or triples that a specialist adds to a prompt, with all that depends on it declared.

A declaration is data, and everything that handles hints goes by it: the columns of retrieve and generate are assembled
from ``hints.HINTS``, a template may have a section of a hint's name, ``prompts`` draws the lines of its kind, the token
budget knows whether it may shorten it, and ``audit`` checks what is declared here with code of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import polars as pl

HintKind = Literal["films", "triples"]

TRIPLE = pl.Struct({"movie_id": pl.Int32, "relation": pl.String, "entity": pl.String, "entity_name": pl.String})
DTYPES: dict[HintKind, pl.DataType] = {"films": pl.List(pl.Int32), "triples": pl.List(TRIPLE)}
"""Of a hint's column."""
EVIDENCE = ("liked", "disliked")
"""Columns and sections of the films that the user rated before the cutoff, newest first."""
_TAKEN = (*EVIDENCE, "candidates", "retrieved", "answers", "answer", "completion", "prompt", "system", "words")
_NAME = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Specialist:
    """A trained model that writes hints."""

    stage: str
    """That trains it; the column of this name holds the stage's fingerprint."""
    label: str
    """Its name in text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """One section of hints: its column, its lines, and what must hold for it.

    Raises:
        ValueError: the name is no word of lower-case letters, or it is another column's or part's.
    """

    name: str
    """Name of its section and slot in templates, and of its column."""
    number: int
    """Number of the hint in text, as in "hint 1"; two sections may share one."""
    specialist: Specialist
    kind: HintKind
    """films: retrieve's rows have a column of this name; triples: those that retrieve chose (``CHOICES``)."""
    meaning: str
    """What the column holds, for the data card."""
    numbered: bool = False
    """Whether its lines are numbered; else they are bullets. For films."""
    origin: str = ""
    """What is said of a line when a prompt is explained; ``{place}`` is its place, from 1. For films."""
    computed_by: str = ""
    """Module of ``retrieve`` that computes it, see ``retrieve.further_hints``; empty for those that retrieve computes
    itself. For films."""
    settings: tuple[str, ...] = ()
    """Fields of ``[retrieve]`` that shape it, in which prompts and adapter must agree."""
    shortened: bool
    """Whether the token budget may drop lines: of films the last ones, of triples those about a like that it drops."""
    masked: bool
    """Audit: it holds no film that the user rated before the cutoff."""
    within: tuple[str, ...] = ()
    """Audit: it is about films of these columns alone; empty: any film."""
    liked_in_fit: str = ""
    """Audit: each film was liked by somebody in the rows that the specialist's fit was trained on; this is what a leak
    calls a film that was not. Empty: no such rule."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in _TAKEN:
            raise ValueError(f"hint {self.name!r}: its name must be lower-case letters and none of {', '.join(_TAKEN)}")

    @property
    def dtype(self) -> pl.DataType:
        """Of its column."""
        return DTYPES[self.kind]


LIGHTGCN = Specialist(stage="lightgcn", label="LightGCN")
RGAT = Specialist(stage="rgat", label="R-GAT")
