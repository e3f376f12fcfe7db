"""Audit rules on inline hints: a candidate's line says what the columns say of this film, all of it and nothing else.

The words are those that the run states (``schemas.inline.Inline``); what they should be for each candidate is put
together here, from the columns. All other rules on the text read the prompts without their inline hints.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from tripletune.audit.lines import MARK
from tripletune.audit.rules import Finding, listed_films
from tripletune.schemas.answers import AnswerStyle
from tripletune.schemas.hints import HINT_OF
from tripletune.schemas.inline import FACT, INLINE_MARK, NAME, OTHER, PLACE, RELATION, Inline

_BETWEEN = f" {INLINE_MARK} "
_PLAIN = r"^[A-Za-z0-9]{1,50}(?:_[A-Za-z0-9]{1,50}){0,2}$"
"""Names of relations that prompts show as they are, but for the spaces."""


def without_inline(prompt: pl.Expr) -> pl.Expr:
    """Prompts whose lines of data end where their inline hints begin."""
    return prompt.str.replace_all(rf"(?m)({MARK}[^\n]*?){_BETWEEN}[^\n]*$", "${1}")


def inline_findings(texts: pl.DataFrame, inline: Inline, style: AnswerStyle) -> Iterator[Finding]:
    """Rules 2 and 3 on the inline hints of some prompts.

    Args:
        texts: ``row, example_id, prompt, candidates, titles, labels``, ``answers`` and the inline columns; as many
            titles (and labels, where the style has some) as candidates.
        inline: columns and words.
        style: answer style of the completions.
    """
    yield from _unshown(texts, inline)
    wanted = _wanted(texts, inline, style)
    said = _said(texts)
    both = wanted.join(said, on=["row", "line"], how="full", coalesce=True, maintain_order="left_right")
    agree = pl.col("wanted").eq_missing(pl.col("said"))
    differing = both.filter(~agree | pl.col("repeated").fill_null(value=False))
    differing = differing.join(_loosely_equal(differing), on=["row", "line"], how="anti", maintain_order="left")
    found = differing.join(texts.select("row", "example_id"), on="row", maintain_order="left").with_columns(
        detail=pl.concat_str("line", pl.col("said").list.join(_BETWEEN), separator=_BETWEEN, ignore_nulls=True)
    )
    is_answer = pl.col("is_answer").fill_null(value=False)
    yield Finding(3, "inline hints of an answer differ from the columns", _details(found.filter(is_answer)))
    yield Finding(2, "inline hints of a candidate differ from the columns", _details(found.filter(~is_answer)))


def _unshown(texts: pl.DataFrame, inline: Inline) -> Iterator[Finding]:
    """A film of an inline column that is no candidate has no line that could show it."""
    for column in inline.columns:
        films = listed_films(HINT_OF[column]) if column in HINT_OF else pl.col(column)
        left = texts.select("example_id", film=films.list.set_difference("candidates")).filter(
            pl.col("film").list.len() > 0
        )
        detail = pl.format("{} {}", pl.lit(column), pl.col("film").cast(pl.List(pl.String)).list.join(", "))
        yield Finding(2, "inline column names a film that no line shows", left.select("example_id", detail=detail))


def _wanted(texts: pl.DataFrame, inline: Inline, style: AnswerStyle) -> pl.DataFrame:
    """Each candidate's line up to its title, with its hints: ``row, line, wanted, loose, is_answer``.

    ``wanted`` is null without a hint. A fact of a relation with a strange name is ``loose``: this name may be shown in
    any way, and ``wanted`` has what follows it.
    """
    mark = pl.col("label") + "." if style.is_labelled else pl.lit("-")
    labels = pl.col("labels") if style.is_labelled else pl.col("titles")
    shown = (
        texts.select("row", "answers", movie_id="candidates", title="titles", label=labels)
        .explode("movie_id", "title", "label", empty_as_null=False)
        .select(
            "row",
            "movie_id",
            line=pl.concat_str(mark, "title", separator=" "),
            is_answer=pl.col("movie_id").is_in(pl.col("answers")),
        )
    )
    parts = [
        _facts(texts, column, words, inline) if FACT in words else _films(texts, column, words)
        for column, words in inline.words
    ]
    hints = pl.concat(
        [part.with_columns(order=pl.lit(number, pl.Int32)) for number, part in enumerate(parts)], how="diagonal"
    ).sort("row", "movie_id", "order", maintain_order=True)
    by_film = hints.group_by("row", "movie_id", maintain_order=True).agg(wanted="text", loose="loose")
    return shown.join(by_film, on=["row", "movie_id"], how="left", maintain_order="left").drop("movie_id")


def _films(texts: pl.DataFrame, column: str, words: str) -> pl.DataFrame:
    """``row, movie_id, text, loose`` of a column of films."""
    listed = texts.select("row", movie_id=column, place=pl.int_ranges(1, pl.col(column).list.len() + 1))
    listed = listed.explode("movie_id", "place", empty_as_null=False)
    before, found, after = words.partition(PLACE)
    text = pl.format("{}{}{}", pl.lit(before), "place", pl.lit(after)) if found else pl.lit(words)
    return listed.select("row", "movie_id", text=text, loose=pl.lit(value=False))


def _facts(texts: pl.DataFrame, column: str, words: str, inline: Inline) -> pl.DataFrame:
    """``row, movie_id, text, loose`` of a column of triples."""
    facts = texts.select("row", fact=column).explode("fact", empty_as_null=False).unnest("fact")
    known = pl.DataFrame(list(inline.facts.items()), schema={"relation": pl.String, "phrase": pl.String}, orient="row")
    worded = facts.join(known.filter(pl.col("relation") != OTHER), on="relation", how="left", maintain_order="left")
    is_other, is_plain = pl.col("phrase").is_null(), pl.col("relation").str.contains(_PLAIN)
    name = pl.col("relation").str.replace_all("_", " ", literal=True)
    before, _, after = inline.facts[OTHER].partition(RELATION)
    other = pl.when(is_plain).then(pl.concat_str(pl.lit(before), name, pl.lit(after))).otherwise(pl.lit(after))
    worded = worded.with_columns(loose=is_other & ~is_plain, phrase=pl.when(is_other).then(other).otherwise("phrase"))
    ahead, _, behind = words.partition(FACT)
    parts = pl.col("phrase").str.split_exact(NAME, 1).struct
    text = pl.concat_str(
        pl.when("loose").then(pl.lit("")).otherwise(pl.lit(ahead)),
        parts.field("field_0"),
        "entity_name",
        parts.field("field_1"),
        pl.lit(behind),
    )
    return worded.select("row", "movie_id", "loose", text=text)


def _said(texts: pl.DataFrame) -> pl.DataFrame:
    """Lines of data with inline hints: ``row, line`` up to the first, ``said`` and whether the line is ``repeated``."""
    lines = texts.select("row", line=pl.col("prompt").str.extract_all(rf"(?m){MARK}[^\n]*{_BETWEEN}[^\n]*$"))
    split = lines.explode("line", empty_as_null=False).select("row", hints=pl.col("line").str.split(_BETWEEN))
    said = split.select("row", line=pl.col("hints").list.first(), said=pl.col("hints").list.slice(1))
    return said.with_columns(repeated=pl.struct("row", "line").is_duplicated())


def _loosely_equal(differing: pl.DataFrame) -> pl.DataFrame:
    """``row, line`` of the lines whose hints differ in the strange names of relations alone."""
    same_length = pl.col("wanted").list.len() == pl.col("said").list.len()
    some = differing.filter(same_length, pl.col("loose").list.any(), ~pl.col("repeated"))
    each = some.select("row", "line", "wanted", "said", "loose").explode("wanted", "said", "loose")
    agrees = (pl.col("wanted") == pl.col("said")) | (pl.col("loose") & pl.col("said").str.ends_with(pl.col("wanted")))
    return each.group_by("row", "line").agg(agrees.all().alias("agrees")).filter("agrees")


def _details(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("example_id", maintain_order=True).agg(pl.col("detail").first())
