"""The audit's look at the prompt's sections: each lists what one column says, in its order, and no line is left over.

A hint that was forged (a film or a fact that no column holds, put in, exchanged or left out) breaks that. A section is
a run of lines of data; titles are known where a film is a candidate somewhere in the shard, and a fact's line must
begin with its film and hold its entity's name, whatever words the template has for the relation.
"""

from __future__ import annotations

import polars as pl

from tripletune.rank.audit_rules import Finding

_KEY = ("row", "section", "column")


def section_finding(texts: pl.DataFrame, known: pl.DataFrame, mark: str, films: tuple[str, ...]) -> Finding:
    """Rule 2 on the prompts of one shard.

    Args:
        texts: ``example_id, prompt, triples`` and ``films``.
        known: ``movie_id, title``, one to one.
        mark: what a line of data starts with.
        films: the columns that a section of the prompt lists, film by film.
    """
    numbered = texts.with_row_index("row")
    lines, items = _lines(numbered, known, mark), _items(numbered, known, films)
    pairs = lines.join(items, on=["row", "place", "length"])
    agree = pairs.filter(_agree()).group_by(_KEY).agg(pl.len(), pl.col("length").first())
    told = agree.filter(pl.col("len") == pl.col("length"))
    strange = lines.join(told, on=["row", "section"], how="anti")
    untold = items.join(told, on=["row", "column"], how="anti")
    bad = pl.concat([strange.select("row"), untold.select("row")]).unique().sort("row")
    named = bad.join(_first_strange(strange, untold), on="row", how="left", maintain_order="left")
    missing = untold.group_by("row", maintain_order=True).agg(pl.col("column").first())
    named = named.join(missing, on="row", how="left", maintain_order="left").select(
        "row", detail=pl.coalesce("detail", pl.format("{}: in no section", "column"))
    )
    rows = named.join(numbered.select("row", "example_id"), on="row", maintain_order="left")
    return Finding(2, "section of the prompt is not what its column says", rows.select("example_id", "detail"))


def _lines(texts: pl.DataFrame, known: pl.DataFrame, mark: str) -> pl.DataFrame:
    """The lines of data: ``row, section, place, length, line, said``; ``said`` is the film of that title, if known."""
    lines = texts.select("row", line=pl.col("prompt").str.split("\n")).explode("line", empty_as_null=False)
    lines = lines.with_columns(is_data=pl.col("line").str.contains(mark))
    # lines of data without another one between are one section
    lines = lines.with_columns(section=(~pl.col("is_data")).cum_sum()).filter("is_data").drop("is_data")
    group = pl.struct("row", "section").rle_id()
    lines = lines.with_columns(section=group, place=pl.int_range(pl.len(), dtype=pl.Int64)).with_columns(
        place=pl.col("place") - pl.col("place").first().over("section"), length=pl.len().over("section").cast(pl.Int64)
    )
    lines = lines.with_columns(pl.col("line").str.replace(mark, ""))
    said = known.select(line="title", said="movie_id")
    return lines.join(said, on="line", how="left", maintain_order="left")


def _items(texts: pl.DataFrame, known: pl.DataFrame, films: tuple[str, ...]) -> pl.DataFrame:
    """What the columns list: ``row, column, place, length, movie_id, entity, title``; ``entity`` of facts alone."""
    columns = {name: pl.col(name) for name in films}
    columns["triples"] = pl.col("triples").list.eval(pl.element().struct.field("movie_id"))
    entities = pl.col("triples").list.eval(pl.element().struct.field("entity_name"))
    parts = [
        texts.select(
            "row",
            pl.lit(name).alias("column"),
            place=pl.int_ranges(films.list.len()),
            length=films.list.len().cast(pl.Int64),
            movie_id=films,
            entity=entities if name == "triples" else pl.lit(None, pl.List(pl.String)),
        )
        .filter(pl.col("length") > 0)
        .explode(*("place", "movie_id", *(("entity",) if name == "triples" else ())), empty_as_null=False)
        .with_columns(pl.col("entity") if name == "triples" else pl.lit(None, pl.String).alias("entity"))
        for name, films in columns.items()
    ]
    return pl.concat(parts).join(known, on="movie_id", how="left", maintain_order="left")


def _agree() -> pl.Expr:
    """Whether a line says what an item lists, as far as titles are known."""
    film = pl.col("said").eq_missing(pl.col("movie_id")) | (pl.col("said").is_null() & pl.col("title").is_null())
    begins = pl.col("title").is_null() | pl.col("line").str.starts_with(pl.col("title"))
    fact = begins & pl.col("line").str.contains(pl.col("entity"), literal=True)
    return pl.when(pl.col("entity").is_null()).then(film).otherwise(fact)


def _first_strange(strange: pl.DataFrame, untold: pl.DataFrame) -> pl.DataFrame:
    """``row, detail``: of the first section that is no column's, the first line that the likeliest column does not
    have there."""
    first = strange.filter(pl.col("section") == pl.col("section").min().over("row"))
    pairs = first.join(untold, on=["row", "place"], suffix="_of_column").filter(_agree())
    # lines agree from the first on as long as the place is the number of those before
    agreed = pairs.sort("place").with_columns(before=pl.int_range(pl.len()).over(_KEY))
    likeliest = (
        agreed.filter(pl.col("place") == pl.col("before"))
        .group_by("row", "column")
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
