"""Split prompts into lines, once for all rules of the audit.

The audit makes one assumption about templates: a line of data starts with ``- ``, ``<number>. `` or ``<label>. ``.
"""

from __future__ import annotations

import polars as pl

MARK = r"^(?:- |\d+[.)] |[A-Z]{1,2}\. )"
"""Start of a line of data."""


def named_films(examples: pl.DataFrame) -> pl.DataFrame:
    """Distinct titles of candidates: ``title, number, said``; ``said`` is the film, null where titles and films are not
    one to one.

    Args:
        examples: EXAMPLES of some shards; those with more or fewer titles than candidates are ignored.
    """
    listed = examples.select(movie_id="candidates", title="candidate_titles")
    whole = listed.filter(pl.col("movie_id").list.len() == pl.col("title").list.len())
    named = whole.explode("movie_id", "title", empty_as_null=False).select("title", "movie_id").unique()
    known = named.filter(~pl.col("movie_id").is_duplicated(), ~pl.col("title").is_duplicated())
    titles = named.select(pl.col("title").unique()).with_row_index("number")
    return titles.join(known.rename({"movie_id": "said"}), on="title", how="left")


def prompt_lines(texts: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """All lines in order: ``row, line, section, number, said``.

    ``line`` is without its mark. Consecutive lines of data are one ``section``, numbered through all prompts; null for
    other lines. ``number`` and ``said`` are those of the title that equals the line, else null.

    Args:
        texts: ``row, prompt``.
        titles: ``named_films``.
    """
    lines = texts.select("row", line=pl.col("prompt").str.split("\n")).explode("line", empty_as_null=False)
    lines = lines.with_columns(is_data=pl.col("line").str.contains(MARK).fill_null(False))
    # a line of data has the section of the line of data before it, except at the start of a prompt
    section = (~pl.col("is_data") | pl.col("row").ne_missing(pl.col("row").shift())).cum_sum()
    lines = lines.with_columns(
        section=pl.when("is_data").then(section),
        line=pl.when("is_data").then(pl.col("line").str.replace(MARK, "")).otherwise("line"),
    )
    return lines.drop("is_data").join(titles.rename({"title": "line"}), on="line", how="left", maintain_order="left")
