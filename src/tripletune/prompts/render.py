"""Render films and facts as prompts, in the same way for training, for ranking and for an ad-hoc user.

Columnar throughout: a section's lines lie one after the other for all examples, and are joined per example at the end.
"""
# Shape letters in this file: E examples, L lines of one section in all examples

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tripletune.prompts.inline import inline_pieces
from tripletune.prompts.sanitise import UNTITLED
from tripletune.prompts.template import Template
from tripletune.prompts.wording import TripleForm, Wording, words_of_relations
from tripletune.schemas.answers import AnswerStyle
from tripletune.schemas.hints import HINT_OF

BULLET = "-"
COMPLETION = "completion"
"""Name of the answer's lines, next to those of the template's slots."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of one section in all examples; those of example e are ``texts[starts[e]:starts[e + 1]]``."""

    texts: pl.Series
    starts: npt.NDArray[np.int64]
    """Shape (E + 1,)."""
    pieces: tuple[pl.Series, ...]
    """Parts of ``texts``, which are joined by single spaces; a piece may be one value for all lines, or null for a line
    that lacks it. Lines that differ have most pieces in common."""

    def folded(self, nothing: str) -> pl.Series:
        """Shape (E,): each example's lines joined by newlines; ``nothing`` where there are none."""
        lines = self.texts.to_arrow(compat_level=pl.CompatLevel.oldest())
        lists = pa.ListArray.from_arrays(pa.array(self.starts.astype(np.int32)), lines.cast(pa.string()))
        joined = pl.Series(pc.binary_join(lists, "\n"), dtype=pl.String)
        empty = pl.Series(np.diff(self.starts) == 0)
        return joined.zip_with(~empty, pl.Series([nothing]))


def draw_lines(examples: pl.DataFrame, template: Template, form: TripleForm, titles: pl.DataFrame) -> dict[str, Lines]:
    """Lines of each of the template's slots and of the completion.

    Args:
        examples: lists of movie ids of the template's columns, ``candidates`` in the order shown, and ``completion``
            (the films to answer with); ``triples``, a list of structs with ``movie_id, relation, entity_name`` whose
            names are clean already, as are those of topics. Any list may be empty.
        template: fixed text, words and order of the sections.
        form: form of a triple, ``Heat (1995) - directed by - Michael Mann`` or a sentence.
        titles: ``movie_id, display`` from ``sanitise.display_titles``.
    """
    lines = {}
    for slot in template.slots:
        listed, hint = examples[slot], HINT_OF.get(slot)
        if hint and hint.kind == "triples":
            lines[slot] = _triple_lines(listed, form, template.wording, titles)
        elif hint and hint.kind == "topics":
            lines[slot] = _topic_lines(listed, template)
        elif hint:
            lines[slot] = _film_lines(listed, _numbers(listed) if hint.numbered else _bullet(), titles)
        elif slot == "candidates":
            marks = _label_marks(listed, template) if template.answers.is_labelled else _bullet()
            hints = inline_pieces(examples, template.inline, form, template.wording)
            lines[slot] = _film_lines(listed, marks, titles, hints)
        else:
            lines[slot] = _film_lines(listed, _bullet(), titles)
    lines[COMPLETION] = _answer_lines(examples, template.answers, titles)
    return lines


def join_prompts(
    examples: pl.DataFrame, lines: Mapping[str, Lines], template: Template, titles: pl.DataFrame
) -> pl.DataFrame:
    """Prompt, completion and shown titles of each example.

    Args:
        examples, template, titles: as for ``draw_lines``.
        lines: result of ``draw_lines``.

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
    return pl.DataFrame(
        {
            "prompt": _messages({"system": system, "user": user}),
            "completion": _messages({"assistant": texts[COMPLETION]}),
            "candidate_titles": _lists(titles_L, _starts(shown)),
            "candidate_letters": _labels(shown.list.len(), template.answers),
        }
    )


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


def _labels(numbers: pl.Series, style: AnswerStyle) -> pl.Series:
    """Shape (E,): labels of each example's candidates, ``numbers`` of them; empty where the style has none."""
    distinct = numbers.unique().to_list()
    labels = pl.DataFrame(
        {"number": distinct, "labels": [style.labels(number) if style.labels else [] for number in distinct]},
        schema={"number": numbers.dtype, "labels": pl.List(pl.String)},
    )
    return numbers.alias("number").to_frame().join(labels, on="number", how="left", maintain_order="left")["labels"]


def _displayed(films: pl.Series, titles: pl.DataFrame) -> pl.Series:
    """Shape (L,): the films' titles; a film that is not in the catalogue gets a distinct placeholder."""
    ids, wanted = titles["movie_id"].to_numpy(), films.to_numpy()
    if not len(ids):
        return _nameless(films)
    places = np.searchsorted(ids, wanted).clip(max=len(ids) - 1)
    display = titles["display"].gather(places)
    known = ids[places] == wanted
    return display if known.all() else display.zip_with(pl.Series(known), _nameless(films))


def _nameless(films: pl.Series) -> pl.Series:
    return pl.select(pl.format("{} [{}]", pl.lit(UNTITLED), films)).to_series()


def _film_lines(films: pl.Series, marks: pl.Series, titles: pl.DataFrame, further: Sequence[pl.Series] = ()) -> Lines:
    """Lines ``mark title`` and further pieces; ``marks`` has one mark per line, or one for all lines."""
    display = _displayed(films.explode(empty_as_null=False), titles)
    texts = marks + " " + display
    if further:
        pieces = [texts.alias("0"), *(piece.alias(str(place)) for place, piece in enumerate(further, start=1))]
        joined = pl.concat_str([piece.name for piece in pieces], separator=" ", ignore_nulls=True)
        texts = pl.DataFrame(pieces).select(joined).to_series()
    return Lines(texts, _starts(films), (marks, display, *further))


def _bullet() -> pl.Series:
    return pl.Series([BULLET])


def _numbers(films: pl.Series) -> pl.Series:
    """Shape (L,): ``1.``, ``2.`` and so on in each example's list."""
    starts = _starts(films)
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))
    return pl.Series([f"{number}." for number in range(1, int(place.max(initial=0)) + 2)]).gather(place)


def _label_marks(candidates: pl.Series, template: Template) -> pl.Series:
    """Shape (L,): ``A.``, ``B.`` and so on in each example's list."""
    return _labels(candidates.list.len(), template.answers).explode(empty_as_null=False) + "."


def _answer_lines(examples: pl.DataFrame, style: AnswerStyle, titles: pl.DataFrame) -> Lines:
    """Lines of the completion, in the form of ``style.line``."""
    picks = examples["completion"]
    if style.is_labelled:
        names = _labels_of_picks(examples, style)
    else:
        names = _displayed(picks.explode(empty_as_null=False), titles)
    if not style.numbered:
        return Lines(names, _starts(picks), (names,))
    numbers = _numbers(picks)
    return Lines(numbers + " " + names, _starts(picks), (numbers, names))


def _labels_of_picks(examples: pl.DataFrame, style: AnswerStyle) -> pl.Series:
    """Shape (L,): the label of each film of the completion, by its place among the candidates."""
    shown = (
        examples.select(pl.row_index("row"), movie_id="candidates")
        .with_columns(label=_labels(examples["candidates"].list.len(), style))
        .explode("movie_id", "label", empty_as_null=False)
    )
    picked = examples.select(pl.row_index("row"), movie_id="completion").explode("movie_id", empty_as_null=False)
    return picked.join(shown, on=["row", "movie_id"], how="left", maintain_order="left")["label"]


def _triple_lines(triples: pl.Series, form: TripleForm, wording: Wording, titles: pl.DataFrame) -> Lines:
    flat = triples.explode(empty_as_null=False).struct.unnest()
    words = words_of_relations(flat["relation"].unique().sort(), form, wording)
    around = flat.select("relation", "entity_name").join(words, on="relation", how="left", maintain_order="left")
    lines = around.select(
        display=_displayed(flat["movie_id"], titles),
        between="between",
        ending=pl.concat_str("entity_name", "end") if form == "sentence" else "entity_name",
    )
    texts = lines.select(pl.concat_str(pl.lit(f"{BULLET} "), "display", "between", "ending")).to_series()
    is_apart = words["between"].str.starts_with(" ").all() and words["between"].str.ends_with(" ").all()
    pieces = (
        (_bullet(), lines["display"], lines["between"].str.strip_chars(), lines["ending"]) if is_apart else (texts,)
    )
    return Lines(texts, _starts(triples), pieces)


def _topic_lines(topics: pl.Series, template: Template) -> Lines:
    """Lines such as ``- directed by Michael Mann: 7 liked films, 2 of the newest 10``."""
    flat = topics.explode(empty_as_null=False).struct.unnest()
    words = words_of_relations(flat["relation"].unique().sort(), "arrow", template.wording, inline=True)
    told = flat.join(words, on="relation", how="left", maintain_order="left")
    values = {
        "fact": pl.concat_str("between", "entity_name", "end"),
        "films": pl.col("films").cast(pl.String),
        "recent": pl.col("recent").cast(pl.String),
    }
    parts = [
        values[part] if place % 2 else pl.lit(part)  # a slot follows each text
        for place, part in enumerate(re.split(r"\{(\w+)\}", template.topic))
    ]
    lines = told.select(pl.concat_str(pl.lit(f"{BULLET} "), *parts)).to_series()
    return Lines(lines, _starts(topics), (lines,))
