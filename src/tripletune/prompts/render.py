"""The one function that turns films and facts into prompts, for training, for ranking and for an ad-hoc viewer.

Columnar throughout: each slot's films are exploded, given their titles, joined to lines and folded back per example.
"""

from __future__ import annotations

from typing import Literal

import polars as pl

from tripletune.prompts.sanitise import UNTITLED, clean_text
from tripletune.prompts.template import Template

TripleForm = Literal["arrow", "sentence"]

NUM_ANSWERS = 5
"""Films that a completion names; the templates ask for this many in words."""

BULLET = "- "
NOTHING = "(none)"
"""Stands alone in a section without data. Not bulleted, so no title can imitate it."""

NUMBERED_SLOTS = ("ranking",)

_WORDING = {
    "genre": ("genre", "is of the genre"),
    "decade": ("decade", "is from the"),
    "tag": ("tagged", "was tagged as"),
    "director": ("directed by", "was directed by"),
    "writer": ("written by", "was written by"),
    "actor": ("starring", "stars"),
    "cinematographer": ("filmed by", "was filmed by"),
    "composer": ("music by", "has music by"),
    "producer": ("produced by", "was produced by"),
    "editor": ("edited by", "was edited by"),
}
"""Relation -> words of the arrow form, words of the sentence form."""


def render_prompts(examples: pl.DataFrame, template: Template, form: TripleForm, titles: pl.DataFrame) -> pl.DataFrame:
    """Prompt, completion and shown titles of each example.

    Args:
        examples: lists of movie ids ``liked, disliked, ranking, similar, candidates`` (in the order shown) and
            ``completion`` (the films to answer with); ``triples``, a list of structs with ``movie_id, relation,
            entity_name`` whose names are clean already. Any list may be empty.
        template: fixed text and order of the sections.
        form: how a triple reads, ``Heat (1995) - directed by - Michael Mann`` or as a sentence.
        titles: ``movie_id, display`` of ``sanitise.display_titles``.

    Returns:
        One row per example, in order: ``prompt`` and ``completion`` (chat messages) and ``candidate_titles``. A
        completion is numbered lines joined by newlines, without one at the end.
    """
    sections = {
        slot: _fold(
            _triple_lines(examples, form, titles) if slot == "triples" else _film_lines(examples, slot, titles),
            len(examples),
        )
        for slot in template.slots
    }
    answer = _fold(_film_lines(examples, "completion", titles, numbered=True), len(examples))
    user: list[pl.Expr] = [pl.lit(template.texts[0])]
    for slot, text in zip(template.slots, template.texts[1:], strict=True):
        user += [pl.col(slot), pl.lit(text)]
    shown = _explode(examples, "candidates", titles).group_by("row", maintain_order=True).agg("display")
    rows = pl.DataFrame({"row": range(len(examples))}, schema={"row": pl.UInt32})
    shown = rows.join(shown, on="row", how="left", maintain_order="left")
    texts = pl.DataFrame({**sections, "answer": answer})
    return texts.select(
        prompt=pl.concat_list(_message("system", pl.lit(template.system)), _message("user", pl.concat_str(user))),
        completion=pl.concat_list(_message("assistant", pl.col("answer"))),
        candidate_titles=shown["display"].fill_null(pl.Series([[]], dtype=pl.List(pl.String))),
    )


def relation_words(relations: list[str], form: TripleForm) -> dict[str, str]:
    """What stands between film and entity, such as `` - directed by - `` or `` was directed by ``.

    Relations of extra triples read as they are named: `` - studio - ``, ``, studio: ``.
    """
    clean = pl.DataFrame({"name": relations}, schema={"name": pl.String}).select(
        clean_text(pl.col("name").str.replace_all("_", " ", literal=True)).fill_null("fact")
    )
    words = {}
    for relation, name in zip(relations, clean.to_series(), strict=True):
        arrow, sentence = _WORDING.get(relation, (name, ""))
        words[relation] = f" - {arrow} - " if form == "arrow" else f" {sentence} " if sentence else f", {name}: "
    return words


def _message(role: str, content: pl.Expr) -> pl.Expr:
    return pl.struct(role=pl.lit(role), content=content)


def _explode(examples: pl.DataFrame, column: str, titles: pl.DataFrame) -> pl.DataFrame:
    """One line per film: ``row`` of the example, ``number`` from 1, ``movie_id``, ``display``."""
    films = examples.select(pl.col(column).alias("movie_id")).with_row_index("row")
    films = films.with_columns(number=pl.int_ranges(1, pl.col("movie_id").list.len() + 1)).explode("movie_id", "number")
    return _with_titles(films, titles)


def _with_titles(lines: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    known = lines.join(titles, on="movie_id", how="left", maintain_order="left")
    nameless = pl.format("{} [{}]", pl.lit(UNTITLED), "movie_id")
    return known.with_columns(display=pl.coalesce("display", nameless))


def _film_lines(examples: pl.DataFrame, slot: str, titles: pl.DataFrame, numbered: bool = False) -> pl.DataFrame:
    lines = _explode(examples, slot, titles)
    numbered = numbered or slot in NUMBERED_SLOTS
    mark = pl.format("{}. ", "number") if numbered else pl.lit(BULLET)
    return lines.select("row", line=pl.concat_str(mark, "display"))


def _triple_lines(examples: pl.DataFrame, form: TripleForm, titles: pl.DataFrame) -> pl.DataFrame:
    triples = examples.select("triples").with_row_index("row").explode("triples").unnest("triples")
    words = relation_words(triples["relation"].unique().sort().to_list(), form)
    between = pl.DataFrame(
        {"relation": list(words), "words": list(words.values())}, schema={"relation": pl.String, "words": pl.String}
    )
    lines = _with_titles(triples, titles).join(between, on="relation", how="left", maintain_order="left")
    end = pl.lit("." if form == "sentence" else "")
    return lines.select("row", line=pl.concat_str(pl.lit(BULLET), "display", "words", "entity_name", end))


def _fold(lines: pl.DataFrame, num_rows: int) -> pl.Series:
    """Lines joined per row; a row without lines says so."""
    texts = lines.group_by("row", maintain_order=True).agg(text=pl.col("line").str.join("\n"))
    rows = pl.DataFrame({"row": range(num_rows)}, schema={"row": pl.UInt32})
    return rows.join(texts, on="row", how="left", maintain_order="left")["text"].fill_null(NOTHING)
