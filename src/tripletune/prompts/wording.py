"""Wording of a template: how a fact reads in its language, and the line shown in an empty section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import polars as pl

from tripletune.errors import ConfigError
from tripletune.prompts.sanitise import clean_text
from tripletune.schemas.knowledge import RELATION_NAMES

TripleForm = Literal["arrow", "sentence"]

_OTHER = "other"
_RELATION = "{relation}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """Words of one template."""

    nothing: str
    """Only line of a section without data. Not marked as data, so no title can imitate it."""
    arrows: Mapping[str, str]
    """Relation -> its words in the arrow form; ``other`` is used for relations without an entry."""
    sentences: Mapping[str, tuple[str, str]]
    """Relation -> the words between film and entity and those after the entity, in the sentence form."""

    def around(self, relation: str, form: TripleForm) -> tuple[str, str]:
        """The text between film and entity, and after the entity: `` - directed by - `` and nothing, or
        `` was directed by `` and a full stop."""
        known = relation if relation in self.arrows else _OTHER
        if form == "arrow":
            return f" - {self.arrows[known]} - ", ""
        return self.sentences[known]


def parse_wording(text: str, where: str) -> Wording:
    """Parse the part ``[words]``: a line ``nothing: (none)``, and for each relation ``name: arrow | sentence``.

    A sentence begins with ``{film}`` and holds ``{name}``; ``other`` may also hold ``{relation}``.

    Raises:
        ConfigError: a line is not of that form, or a relation is missing or unknown.
    """
    lines = dict(_entry(line, where) for line in text.split("\n"))
    expected = {"nothing", _OTHER, *RELATION_NAMES}
    if wrong := sorted(expected ^ set(lines)):
        raise ConfigError(
            f"template {where}: [words] must hold exactly one line for each of {', '.join(sorted(expected))}; "
            f"look at {wrong[0]}"
        )
    facts = {name: _fact(name, value, where) for name, value in lines.items() if name != "nothing"}
    return Wording(
        nothing=lines["nothing"],
        arrows={name: arrow for name, (arrow, _) in facts.items()},
        sentences={name: sentence for name, (_, sentence) in facts.items()},
    )


def _entry(line: str, where: str) -> tuple[str, str]:
    name, colon, value = line.partition(": ")
    if not colon or not value.strip():
        raise ConfigError(f"template {where}: the line {line!r} of [words] must read 'name: words'")
    return name, value.strip()


def _fact(name: str, value: str, where: str) -> tuple[str, tuple[str, str]]:
    arrow, bar, sentence = (text.strip() for text in value.partition("|"))
    between, found, end = sentence.removeprefix("{film}").partition("{name}")
    rest = arrow + between + end
    if name == _OTHER:
        rest = rest.replace(_RELATION, "")
    if not (arrow and bar and found and between.strip() and sentence.startswith("{film}")) or set(rest) & set("{}"):
        raise ConfigError(
            f"template {where}: the line '{name}' of [words] must read "
            f"'{name}: words | {{film}} words {{name}} words', with no other braces"
        )
    return arrow, (between, end)


def words_of_relations(relations: Iterable[str], form: TripleForm, wording: Wording) -> pl.DataFrame:
    """``relation, between, end`` for each relation; names from extra triples are shown with spaces for ``_``."""
    names = list(relations)
    plain = pl.Series("name", names, dtype=pl.String).str.replace_all("_", " ", literal=True).to_frame()
    shown = plain.select(clean_text(pl.col("name")).fill_null("fact"))["name"]
    around = [
        tuple(part.replace(_RELATION, clean) for part in wording.around(name, form))
        for name, clean in zip(names, shown, strict=True)
    ]
    rows = [(name, *parts) for name, parts in zip(names, around, strict=True)]
    return pl.DataFrame(rows, schema=dict.fromkeys(("relation", "between", "end"), pl.String), orient="row")
