"""The one function that turns films and facts into prompts, for training, for ranking and for an ad-hoc viewer.

Columnar throughout: a section's lines lie one after the other for all examples, and are joined per example at the end.
"""
# Shape letters in this file: E examples, L lines of one section in all examples

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from string import ascii_uppercase

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tripletune.prompts.sanitise import UNTITLED
from tripletune.prompts.template import Template
from tripletune.prompts.wording import TripleForm, Wording, words_of_relations

NUM_ANSWERS = 5
"""Films that a completion names; the templates ask for this many in words."""

BULLET = "-"
COMPLETION = "completion"
"""Name of the answer's lines beside those of the template's slots."""

NUMBERED_SLOTS = ("ranking",)


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of one section in all examples; those of example e are ``texts[starts[e]:starts[e + 1]]``."""

    texts: pl.Series
    starts: npt.NDArray[np.int64]
    """Shape (E + 1,)."""
    pieces: tuple[pl.Series, ...]
    """What ``texts`` is when joined by single spaces; a piece may be one value for all lines. Lines that differ have
    most pieces in common."""

    def folded(self, nothing: str) -> pl.Series:
        """Shape (E,): each example's lines joined by newlines; ``nothing`` where there are none."""
        lines = self.texts.to_arrow(compat_level=pl.CompatLevel.oldest())
        lists = pa.ListArray.from_arrays(pa.array(self.starts.astype(np.int32)), lines.cast(pa.string()))
        joined = pl.Series(pc.binary_join(lists, "\n"), dtype=pl.String)
        empty = pl.Series(np.diff(self.starts) == 0)
        return joined.zip_with(~empty, pl.Series([nothing]))


def draw_lines(examples: pl.DataFrame, template: Template, form: TripleForm, titles: pl.DataFrame) -> dict[str, Lines]:
    """The lines of each of the template's slots and of the completion.

    Args:
        examples: lists of movie ids of the template's slots, ``candidates`` in the order shown, and ``completion`` (the
            films to answer with); ``triples``, a list of structs with ``movie_id, relation, entity_name`` whose names
            are clean already. Any list may be empty.
        template: fixed text, words and order of the sections.
        form: how a triple reads, ``Heat (1995) - directed by - Michael Mann`` or as a sentence.
        titles: ``movie_id, display`` of ``sanitise.display_titles``.
    """
    lines = {}
    for slot in template.slots:
        if slot == "triples":
            lines[slot] = _triple_lines(examples["triples"], form, template.wording, titles)
        else:
            mark = "number" if slot in NUMBERED_SLOTS else "bullet"
            is_lettered = slot == "candidates" and template.answer_style == "letters"
            lines[slot] = _film_lines(examples[slot], "letter" if is_lettered else mark, titles)
    if template.answer_style == "letters":
        lines[COMPLETION] = _letter_lines(examples)
    else:
        lines[COMPLETION] = _film_lines(examples["completion"], "number", titles)
    return lines


def join_prompts(
    examples: pl.DataFrame, lines: Mapping[str, Lines], template: Template, titles: pl.DataFrame
) -> pl.DataFrame:
    """Prompt, completion and shown titles of each example.

    Args:
        examples, template, titles: as for ``draw_lines``.
        lines: those of ``draw_lines``.

    Returns:
        One row per example, in order: ``prompt`` and ``completion`` (chat messages), ``candidate_titles`` and
        ``candidate_letters`` (empty where answers are titles). A completion is lines joined by newlines, without one
        at the end.
    """
    texts = pl.DataFrame({name: section.folded(template.wording.nothing) for name, section in lines.items()})
    parts: list[pl.Expr] = [pl.lit(template.texts[0])]
    for slot, text in zip(template.slots, template.texts[1:], strict=True):
        parts += [pl.col(slot), pl.lit(text)]
    user = texts.select(pl.concat_str(parts).alias("user"))["user"]
    system = pl.Series([template.system]).new_from_index(0, len(user))
    shown = examples["candidates"]
    titles_L = _displayed(shown.explode(empty_as_null=False), titles)
    is_lettered = template.answer_style == "letters"
    return pl.DataFrame(
        {
            "prompt": _messages({"system": system, "user": user}),
            "completion": _messages({"assistant": texts[COMPLETION]}),
            "candidate_titles": _lists(titles_L, _starts(shown)),
            "candidate_letters": _letters(shown.list.len() * int(is_lettered)),
        }
    )


def candidate_letters(number: int) -> list[str]:
    """Labels of so many candidates in the order shown: A to Z, or AA, AB, ... for all of them when they are more.

    One length for all: no label begins another, and none is longer to say.
    """
    if number <= len(ascii_uppercase):
        return list(ascii_uppercase[:number])
    return ["".join(pair) for pair, _ in zip(product(ascii_uppercase, repeat=2), range(number), strict=False)]


def _messages(by_role: Mapping[str, pl.Series]) -> pl.Series:
    """Shape (E,): a list of chat messages, one of each role."""
    num_roles, num_examples = len(by_role), len(next(iter(by_role.values())))
    place = np.arange(num_roles * num_examples)
    contents = pl.concat(list(by_role.values())).gather(place // num_roles + place % num_roles * num_examples)
    roles = pl.Series(list(by_role)).gather(place % num_roles)
    flat = pl.DataFrame({"role": roles, "content": contents}).to_struct()
    return flat.reshape((num_examples, num_roles)).arr.to_list()


def _starts(lists: pl.Series) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], lists.list.len().fill_null(0).to_numpy().cumsum()]).astype(np.int64)


def _lists(values: pl.Series, starts: npt.NDArray[np.int64]) -> pl.Series:
    """Shape (E,): the values as one list per example."""
    arrow = values.to_arrow(compat_level=pl.CompatLevel.oldest())
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(starts), arrow), dtype=pl.List(values.dtype))


def _letters(numbers: pl.Series) -> pl.Series:
    """Shape (E,): the labels of each example's candidates."""
    distinct = numbers.unique().to_list()
    labels = pl.DataFrame(
        {"number": distinct, "letters": [candidate_letters(number) for number in distinct]},
        schema={"number": numbers.dtype, "letters": pl.List(pl.String)},
    )
    return numbers.alias("number").to_frame().join(labels, on="number", how="left", maintain_order="left")["letters"]


def _displayed(films: pl.Series, titles: pl.DataFrame) -> pl.Series:
    """Shape (L,): the films' titles; a film that the catalogue lacks gets a name of its own."""
    ids, wanted = titles["movie_id"].to_numpy(), films.to_numpy()
    if not len(ids):
        return _nameless(films)
    places = np.searchsorted(ids, wanted).clip(max=len(ids) - 1)
    display = titles["display"].gather(places)
    known = ids[places] == wanted
    return display if known.all() else display.zip_with(pl.Series(known), _nameless(films))


def _nameless(films: pl.Series) -> pl.Series:
    return pl.select(pl.format("{} [{}]", pl.lit(UNTITLED), films)).to_series()


def _film_lines(films: pl.Series, mark: str, titles: pl.DataFrame) -> Lines:
    starts, flat = _starts(films), films.explode(empty_as_null=False)
    display = _displayed(flat, titles)
    if mark == "bullet":
        return Lines(f"{BULLET} " + display, starts, (_bullet(), display))
    place = np.arange(len(flat)) - np.repeat(starts[:-1], np.diff(starts))
    if mark == "number":
        numbers = [f"{number}." for number in range(1, int(place.max(initial=0)) + 2)]
        marks = pl.Series(numbers).gather(place)
    else:
        marks = _letters(films.list.len()).explode(empty_as_null=False) + "."
    return Lines(marks + " " + display, starts, (marks, display))


def _bullet() -> pl.Series:
    return pl.Series([BULLET])


def _letter_lines(examples: pl.DataFrame) -> Lines:
    """The label of each film of the completion: its place among the candidates."""
    picks = examples["completion"]
    shown = (
        examples.select(pl.row_index("row"), movie_id="candidates")
        .with_columns(letter=_letters(examples["candidates"].list.len()))
        .explode("movie_id", "letter", empty_as_null=False)
    )
    asked = examples.select(pl.row_index("row"), movie_id=picks).explode("movie_id", empty_as_null=False)
    named = asked.join(shown, on=["row", "movie_id"], how="left", maintain_order="left")
    return Lines(named["letter"], _starts(picks), (named["letter"],))


def _triple_lines(triples: pl.Series, form: TripleForm, wording: Wording, titles: pl.DataFrame) -> Lines:
    flat = triples.explode(empty_as_null=False).struct.unnest()
    words = words_of_relations(flat["relation"].unique().sort(), form, wording)
    around = flat.select("relation", "entity_name").join(words, on="relation", how="left", maintain_order="left")
    lines = around.select(
        display=_displayed(flat["movie_id"], titles),
        between="between",
        told=pl.concat_str("entity_name", "end") if form == "sentence" else "entity_name",
    )
    texts = lines.select(pl.concat_str(pl.lit(f"{BULLET} "), "display", "between", "told")).to_series()
    is_apart = words["between"].str.starts_with(" ").all() and words["between"].str.ends_with(" ").all()
    pieces = (_bullet(), lines["display"], lines["between"].str.strip_chars(), lines["told"]) if is_apart else (texts,)
    return Lines(texts, _starts(triples), pieces)
