"""Audit rules on the text: prompts and completions must agree with the columns.

Columns without a leak prove nothing if the text was rendered from something else. A line of data that equals a title
names a film; a completion names films by title or, where the prompt labels its candidates, by label.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from tripletune.audit.inline import inline_findings, without_inline
from tripletune.audit.lines import MARK, prompt_lines
from tripletune.audit.rules import Finding, pair
from tripletune.audit.sections import section_finding
from tripletune.audit.worked import NO_WORKED, Worked, without_worked
from tripletune.schemas.answers import NUM_ANSWERS, AnswerStyle
from tripletune.schemas.hint import EVIDENCE
from tripletune.schemas.hints import FILM_HINTS, TOPIC_HINTS, TRIPLE_HINTS
from tripletune.schemas.inline import NO_INLINE, Inline
from tripletune.store.parquet import joined

NAMING = ("candidates", *(hint.name for hint in FILM_HINTS), *EVIDENCE)
"""Columns that each put a film's title on one line of the prompt, unless they are inline."""
_LABELS = "candidate_letters"


def text_findings(
    examples: pl.DataFrame,
    titles: pl.DataFrame,
    purpose: str,
    style: AnswerStyle,
    inline: Inline = NO_INLINE,
    worked: Worked = NO_WORKED,
) -> Iterator[Finding]:
    """Rules on the titles in prompts and completions.

    Args:
        examples: EXAMPLES, all of a group of shards or some.
        titles: ``lines.named_films`` of the whole group.
        purpose: train, valid or test.
        style: answer style of the completions.
        inline: what candidates' lines say after the title.
        worked: worked examples that the prompts show; they are checked apart, and not read here.
    """
    texts = examples.with_row_index("row").select(
        "row",
        "example_id",
        "answers",
        *NAMING,
        "retrieved",
        *(hint.name for hint in (*TRIPLE_HINTS, *TOPIC_HINTS)),
        titles="candidate_titles",
        labels="candidate_letters",
        names="candidate_letters" if style.is_labelled else "candidate_titles",
        prompt=without_worked(joined("prompt"), worked),
        completion=joined("completion"),
    )
    ragged = pl.col("candidates").list.len() != pl.col("titles").list.len()
    yield Finding(
        0, "candidates and titles differ in number", texts.filter(ragged).select("example_id", detail=pl.lit("columns"))
    )
    whole = texts.filter(~ragged)
    shared = whole.filter(pl.col("titles").list.n_unique() < pl.col("titles").list.len())
    yield Finding(0, "two candidates share a title", shared.select("example_id", detail=pl.lit("candidate_titles")))
    if style.is_labelled:
        misnamed = whole.filter(_are_not_one_to_a_title("labels")).select("example_id", detail=pl.lit(_LABELS))
        yield Finding(0, "labels are not one to a candidate", misnamed)
        whole = whole.join(misnamed, on="example_id", how="anti", maintain_order="left")
    else:
        strange = whole.filter(_length("labels") > 0).select("example_id", detail=pl.lit(_LABELS))
        yield Finding(0, f"labels although answers are {style.name}", strange)
    if inline.words:
        yield from inline_findings(whole, inline, style)
        whole = whole.with_columns(without_inline(pl.col("prompt")))
    if style.is_labelled:
        yield _label_finding(whole)
    pairs = whole.select("row", "example_id", movie_id="candidates", title="titles", name="names").explode(
        "movie_id", "title", "name", empty_as_null=False
    )
    lines = prompt_lines(whole, titles)
    numbered = pairs.join(titles, on="title", how="left", maintain_order="left")
    absent = numbered.join(lines, on=["row", "number"], how="anti", maintain_order="left")
    yield Finding(0, "candidate's title is no line of the prompt", _named(absent))
    yield from _prompt_findings(whole, lines, titles, inline)
    yield from _completion_findings(whole, pairs, purpose, style, inline)


def _label_finding(texts: pl.DataFrame) -> Finding:
    """A label must stand before its own title: with another label, training would learn another film."""
    wanted = texts.select("example_id", name="names", title="titles").explode("name", "title", empty_as_null=False)
    wanted = wanted.with_columns(line=pl.format("{}. {}", "name", "title"))
    lines = texts.select("example_id", line=pl.col("prompt").str.split("\n")).explode("line")
    absent = wanted.join(lines, on=["example_id", "line"], how="anti", maintain_order="left")
    return Finding(0, "label does not stand before its title", _named(absent))


def _prompt_findings(
    texts: pl.DataFrame, lines: pl.DataFrame, titles: pl.DataFrame, inline: Inline
) -> Iterator[Finding]:
    """Rules 2 and 3: no film, in particular no answer, is in the prompt more often than in its columns."""
    naming = tuple(name for name in NAMING if name not in inline.columns)
    said = lines.filter(pl.col("said").is_not_null()).select("row", movie_id="said").with_columns(shown=pair("row"))
    counted = said.group_by("shown").agg(pl.len(), pl.col("row", "movie_id").first())
    columns = [_films(texts, name) for name in naming]
    expected = pl.concat(columns).group_by("shown").len("expected")
    found = (
        counted.join(expected, on="shown", how="left")
        .filter(pl.col("len") > pl.col("expected").fill_null(0))
        .join(titles.select("title", movie_id="said"), on="movie_id")
        .join(texts.select("row", "example_id"), on="row")
        .sort("row", "movie_id")
    )
    is_answer = pl.col("shown").is_in(_films(texts, "answers")["shown"].implode())
    yield Finding(3, "answer stands in the prompt beyond candidates and hints", _named(found.filter(is_answer)))
    yield Finding(2, "prompt names a film that its columns do not", _named(found.filter(~is_answer)))
    # an example that is reported already is not reported again
    rest = texts.join(found, on="row", how="anti", maintain_order="left")
    facts = (*(hint for hint in TRIPLE_HINTS if hint.name not in inline.columns), *TOPIC_HINTS)
    yield section_finding(rest, lines, titles, naming, facts)


def _completion_findings(
    texts: pl.DataFrame, pairs: pl.DataFrame, purpose: str, style: AnswerStyle, inline: Inline
) -> Iterator[Finding]:
    """Rule 3: the completion names the answers, then candidates in the order that the prompt shows, and nothing else.

    A column that no prompt shows is empty, and then the order is that of the candidates.
    """
    ordered = "retrieved" if "retrieved" in inline.columns else "ranking"
    films = pl.concat_list("answers", ordered, "candidates")
    in_order = texts.select("example_id", movie_id=films.list.unique(maintain_order=True))
    wanted = (
        in_order.explode("movie_id", empty_as_null=False)
        .join(pairs, on=["example_id", "movie_id"], maintain_order="left")
        .group_by("example_id", maintain_order=True)
        .agg(wanted=pl.col("name").head(NUM_ANSWERS))
    )
    lines = pl.col("completion").str.split("\n")
    found = lines.list.eval(pl.element().str.replace(MARK, "")) if style.numbered else lines
    said = texts.select("example_id", "answers", "candidates", "completion", found=found)
    said = said.join(wanted, on="example_id", how="left", maintain_order="left")
    detail = pl.format("says: {}", pl.col("completion").str.replace_all("\n", " | "))
    if purpose == "train":
        outside = said.filter(pl.col("answers").list.set_difference(pl.col("candidates")).list.len() > 0)
        yield Finding(3, "answer of a training example is no candidate", outside.select("example_id", detail=detail))
    differs = pl.col("found").ne_missing(pl.col("wanted"))
    yield Finding(
        3,
        "completion is not the answers, then the order shown",
        said.filter(differs).select("example_id", detail=detail),
    )


def _films(texts: pl.DataFrame, column: str) -> pl.DataFrame:
    """Each film of a column, as ``shown``: the join key of row and film."""
    films = texts.select("row", movie_id=column).explode("movie_id", empty_as_null=False)
    return films.select(shown=pair("row"))


def _length(column: str) -> pl.Expr:
    return pl.col(column).list.len().fill_null(0)


def _are_not_one_to_a_title(labels: str) -> pl.Expr:
    return (_length(labels) != _length("titles")) | (pl.col(labels).list.n_unique() < _length(labels))


def _named(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("example_id", maintain_order=True).agg(detail=pl.col("title").str.join(", "))
