"""Audit rule on the sections of prompts: each section lists one column in its order, and no line is left over.

A forged hint (a film or a fact added, exchanged or removed in the text) breaks this. A section is a run of lines of
data. A film's title is only available if the film is a candidate somewhere in the group of shards. The line of a fact
must begin with its film and contain its entity's name, with any words of the template for the relation. The line of a
topic must contain its entity's name and, as the next numbers, its counts.
"""

from __future__ import annotations

import polars as pl

from tripletune.audit.rules import Finding, listed_films
from tripletune.schemas.hint import Hint

_KEY = ("row", "section", "column")
_OPTIONAL = pl.DataFrame(schema={"movie_id": pl.Int32, "entity": pl.String, "counts": pl.List(pl.String)})


def section_finding(
    texts: pl.DataFrame, lines: pl.DataFrame, titles: pl.DataFrame, films: tuple[str, ...], facts: tuple[Hint, ...]
) -> Finding:
    """Rule 2 on some prompts.

    Args:
        texts: ``row, example_id``, the columns of ``facts``, and ``films``.
        lines: ``lines.prompt_lines`` of at least these texts.
        titles: ``lines.named_films``.
        films: the columns that a section of the prompt lists, film by film.
        facts: the hints of triples and topics that a section lists.
    """
    data = lines.filter(pl.col("section").is_not_null(), pl.col("row").is_in(texts["row"].implode()))
    items = _items(texts, titles, films, facts)
    sections, columns = _runs(data, "section"), _runs(items, "column")
    matched = _matching(data, items, sections, columns)
    unmatched = sections.join(matched, on="section", how="anti", maintain_order="left")
    unmatched_columns = columns.join(matched, on=["row", "column"], how="anti", maintain_order="left")
    bad = pl.concat([unmatched.select("row"), unmatched_columns.select("row")]).unique().sort("row")
    first = _first_unmatched(_of_runs(data, unmatched), _of_runs(items, unmatched_columns))
    named = bad.join(first, on="row", how="left", maintain_order="left")
    missing = unmatched_columns.group_by("row", maintain_order=True).agg(pl.col("column").first())
    named = named.join(missing, on="row", how="left", maintain_order="left").select(
        "row", detail=pl.coalesce("detail", pl.format("{}: in no section", "column"))
    )
    rows = named.join(texts.select("row", "example_id"), on="row", maintain_order="left")
    return Finding(2, "section of the prompt differs from its column", rows.select("example_id", "detail"))


def _items(texts: pl.DataFrame, titles: pl.DataFrame, films: tuple[str, ...], facts: tuple[Hint, ...]) -> pl.DataFrame:
    """Items of the columns, column by column: ``row, column, movie_id, entity, counts, title``; ``entity`` for facts
    and topics only, and topics have ``counts`` instead of a film."""
    lists = {name: {"movie_id": pl.col(name)} for name in films}
    for hint in facts:
        field = pl.element().struct.field
        lists[hint.name] = {"entity": pl.col(hint.name).list.eval(field("entity_name"))}
        if hint.kind == "topics":
            counts = pl.concat_list(field("films"), field("recent")).cast(pl.List(pl.String))
            lists[hint.name]["counts"] = pl.col(hint.name).list.eval(counts)
        else:
            lists[hint.name]["movie_id"] = listed_films(hint)
    names = pl.Enum(list(lists))
    parts = [
        texts.select("row", pl.lit(name, names).alias("column"), **columns)
        .filter(pl.col(next(iter(columns))).list.len() > 0)
        .explode(*columns, empty_as_null=False)
        for name, columns in lists.items()
    ]
    known = titles.filter(pl.col("said").is_not_null()).select("title", movie_id="said")
    whole = pl.concat([*parts, _OPTIONAL], how="diagonal")
    return whole.join(known, on="movie_id", how="left", maintain_order="left")


def _runs(rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """Runs of rows with equal ``row`` and ``name``: both columns, with ``start`` and ``length``."""
    runs = rows.lazy().select("row", name, start=pl.int_range(pl.len(), dtype=pl.Int64))
    begins = pl.any_horizontal(pl.col(key).ne_missing(pl.col(key).shift()) for key in ("row", name))
    ends = pl.col("start").shift(-1, fill_value=rows.height)
    return runs.filter(begins).with_columns(length=ends - pl.col("start")).collect()


def _matching(lines: pl.DataFrame, items: pl.DataFrame, sections: pl.DataFrame, columns: pl.DataFrame) -> pl.DataFrame:
    """Sections and columns that agree from the first line to the last: ``row, section, column``."""
    pairs = sections.join(columns, on=["row", "length"], suffix="_of_column").with_row_index("pair")
    places = {
        name: pl.int_ranges(start, pl.col(start) + pl.col("length"))
        for name, start in (("line", "start"), ("item", "start_of_column"))
    }
    at = pairs.select("pair", **places).explode("line", "item", empty_as_null=False)
    said, listed = (
        lines.select("line", "said")[at["line"]],
        items.select("movie_id", "entity", "counts", "title")[at["item"]],
    )
    agree = _agreeing(pl.concat([at.select("pair"), said, listed], how="horizontal")).group_by("pair").len()
    return pairs.join(agree, on="pair").filter(pl.col("len") == pl.col("length")).select(_KEY)


def _of_runs(rows: pl.DataFrame, runs: pl.DataFrame) -> pl.DataFrame:
    """All rows of some runs, with ``place`` in the run, from 0."""
    places = pl.int_ranges(0, pl.col("length"))
    at = runs.select("start", place=places).explode("place", empty_as_null=False)
    return rows[at["start"] + at["place"]].with_columns(at["place"])


def _agreeing(pairs: pl.DataFrame) -> pl.DataFrame:
    """Pairs whose line matches the item, as far as titles are available."""
    film = pl.col("said").eq_missing(pl.col("movie_id")) | (pl.col("said").is_null() & pl.col("title").is_null())
    begins = pl.col("title").is_null() | pl.col("line").str.starts_with(pl.col("title"))
    fact = begins & pl.col("line").str.contains(pl.col("entity"), literal=True)
    after = pl.col("line").str.splitn(pl.col("entity"), 2).struct.field("field_1")
    fact &= pl.col("counts").is_null() | (after.str.extract_all(r"\d+").list.head(2) == pl.col("counts"))
    is_film = pl.col("entity").is_null()
    return pl.concat([pairs.filter(is_film).filter(film), pairs.filter(~is_film).filter(fact)])


def _first_unmatched(unmatched: pl.DataFrame, unmatched_columns: pl.DataFrame) -> pl.DataFrame:
    """``row, detail``: the first line of the first section without a column that differs from the most similar
    column."""
    first = unmatched.filter(pl.col("section") == pl.col("section").min().over("row"))
    pairs = _agreeing(first.join(unmatched_columns, on=["row", "place"], suffix="_of_column"))
    # lines agree from the first on as long as the place equals the number of agreeing lines before
    agreed = pairs.sort("place").with_columns(before=pl.int_range(pl.len()).over(_KEY))
    likeliest = (
        agreed.filter(pl.col("place") == pl.col("before"))
        .group_by("row", pl.col("column").cast(pl.String))
        .agg(agreed=pl.len().cast(pl.Int64))
        .sort("row", "agreed", "column", descending=[False, True, False])
        .unique("row", keep="first", maintain_order=True)
    )
    sections = first.group_by("row", maintain_order=True).agg("line")
    named = sections.join(likeliest, on="row", how="left", maintain_order="left").with_columns(
        pl.col("agreed").fill_null(0), pl.col("column").fill_null("no column")
    )
    line = pl.col("line").list.get(pl.col("agreed"), null_on_oob=True)
    ended = pl.format("ends after {} lines", "agreed")
    return named.select("row", detail=pl.format("{}: {}", "column", pl.coalesce(line, ended)))
