"""Wording of a template: how a fact and an inline hint read in its language, and the line shown in an empty section."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from tripletune.errors import ConfigError
from tripletune.prompts.sanitise import clean_text
from tripletune.schemas.hints import HINT_OF, HINTS
from tripletune.schemas.inline import FACT, NAME, OTHER, PLACE, RELATION, Words
from tripletune.schemas.knowledge import RELATION_NAMES

TripleForm = Literal["arrow", "sentence"]

_INLINE = ("retrieved", *(hint.name for hint in HINTS if hint.kind != "topics"))
"""Columns that a candidate's line may show."""


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
        known = relation if relation in self.arrows else OTHER
        if form == "arrow":
            return f" - {self.arrows[known]} - ", ""
        return self.sentences[known]

    def around_name(self, relation: str, form: TripleForm) -> tuple[str, str]:
        """The text before and after the entity on its film's own line: ``directed by `` and nothing, or
        ``was directed by `` and a full stop. A colon follows the name of a relation without words of its own, so that
        this name and an entity's never read like an inline hint of films."""
        between, end = self.around(relation, form)
        if form == "sentence":
            return between.strip(" ,") + " ", end
        return between.strip(" -") + (" " if relation in self.arrows and relation != OTHER else ": "), end

    def inline_facts(self, form: TripleForm) -> dict[str, str]:
        """Relation -> words of a fact on its film's own line, around ``{name}``."""
        return {relation: NAME.join(self.around_name(relation, form)) for relation in self.arrows}


def parse_wording(text: str, where: str) -> Wording:
    """Parse the part ``[words]``: a line ``nothing: (none)``, and for each relation ``name: arrow | sentence``.

    A sentence begins with ``{film}`` and holds ``{name}``; ``other`` may also hold ``{relation}``.

    Raises:
        ConfigError: a line is not of that form, or a relation is missing or unknown.
    """
    lines = dict(_entry(line, where, "words") for line in text.split("\n"))
    expected = {"nothing", OTHER, *RELATION_NAMES}
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


def _entry(line: str, where: str, part: str) -> tuple[str, str]:
    name, colon, value = line.partition(": ")
    if not colon or not value.strip():
        raise ConfigError(f"template {where}: the line {line!r} of [{part}] must read 'name: words'")
    return name, value.strip()


def _fact(name: str, value: str, where: str) -> tuple[str, tuple[str, str]]:
    arrow, bar, sentence = (text.strip() for text in value.partition("|"))
    between, found, end = sentence.removeprefix("{film}").partition("{name}")
    rest = arrow + between + end
    if name == OTHER:
        rest = rest.replace(RELATION, "")
    if not (arrow and bar and found and between.strip() and sentence.startswith("{film}")) or set(rest) & set("{}"):
        raise ConfigError(
            f"template {where}: the line '{name}' of [words] must read "
            f"'{name}: words | {{film}} words {{name}} words', with no other braces"
        )
    return arrow, (between, end)


def parse_inline(text: str, sections: Sequence[str], wording: str, where: str) -> Words:
    """Parse the part ``[inline]``: lines ``column: words``, in the order of a candidate's line.

    The words of a column whose films are numbered hold ``{place}``, those of a column of triples hold ``{fact}``, those
    of any other column neither: they mark its films.

    Args:
        text: the part; empty: nothing is inline.
        sections: sections of the template, none of which may be inline too.
        wording: the part ``[words]``.
        where: names the template in errors.

    Raises:
        ConfigError: a line is not of that form, its column is unknown, there twice or a section, or words could be
            taken for other words or for the mark between them.
    """
    if not text:
        return ()
    found: dict[str, str] = {}
    for line in text.split("\n"):
        column, words = _entry(line, where, "inline")
        if column not in _INLINE or column in found:
            raise ConfigError(
                f"template {where}: the line {line!r} of [inline] must begin with one of {', '.join(_INLINE)}, each at "
                "most once"
            )
        if column in sections:
            raise ConfigError(
                f"template {where} has {column} in [inline] and in 'sections:'; remove it from one of the two"
            )
        slot = _inline_slot(column)
        rest = words.replace(slot, "", 1) if slot else words
        if (slot and slot not in words) or not (rest.strip() or slot) or set(rest) & set("{}"):
            wanted = f"words with {slot} once" if slot else "words"
            raise ConfigError(
                f"template {where}: the line {line!r} of [inline] must read '{column}: {wanted}', with no other braces"
            )
        # a fact of a relation without words of its own reads 'relation: name'
        if words in found.values() or (slot != FACT and ":" in words):
            raise ConfigError(
                f"template {where}: the line {line!r} of [inline] could be taken for another hint; give each words of "
                "its own, without a colon"
            )
        found[column] = words
    if set("<>") & set(text + wording):
        raise ConfigError(
            f"template {where} has '<' or '>' in [inline] or [words]; remove it, as '>' stands before each inline hint"
        )
    return tuple(found.items())


def _inline_slot(column: str) -> str:
    hint = HINT_OF.get(column)
    if hint is None or hint.numbered:
        return PLACE
    return FACT if hint.kind == "triples" else ""


_TOPIC = re.compile(r"\{fact\}[^{}\d\n]*\{films\}[^{}\d\n]*\{recent\}[^{}\n]*")


def check_topic(words: str, where: str) -> None:
    """Refuse words of a topic without the fact, the liked films that share it and those of them among the newest likes,
    in this order and with no other number between them.

    Raises:
        ConfigError: they are of another form.
    """
    if not _TOPIC.fullmatch(words):
        raise ConfigError(
            f"template {where}: the part [topic] must be one line that begins with {{fact}} and then holds {{films}} "
            "and {recent}, with no digits before {recent} and no other braces"
        )


def words_of_relations(
    relations: Iterable[str], form: TripleForm, wording: Wording, *, inline: bool = False
) -> pl.DataFrame:
    """``relation, between, end`` for each relation; names from extra triples are shown with spaces for ``_``.

    Args:
        relations, form, wording: of the facts.
        inline: ``between`` follows no title, as the fact stands on its film's own line.
    """
    words = wording.around_name if inline else wording.around
    names = list(relations)
    plain = pl.Series("name", names, dtype=pl.String).str.replace_all("_", " ", literal=True).to_frame()
    shown = plain.select(clean_text(pl.col("name")).fill_null("fact"))["name"]
    around = [
        tuple(part.replace(RELATION, clean) for part in words(name, form))
        for name, clean in zip(names, shown, strict=True)
    ]
    rows = [(name, *parts) for name, parts in zip(names, around, strict=True)]
    return pl.DataFrame(rows, schema=dict.fromkeys(("relation", "between", "end"), pl.String), orient="row")
