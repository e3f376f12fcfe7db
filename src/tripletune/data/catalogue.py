"""The small tables of a MovieLens release: movies, tags and links."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tripletune.data.layouts import GENRES_100K, Layout
from tripletune.data.tables import Check, Sifted, TextTable, not_integer, read_records, sift
from tripletune.errors import InputError
from tripletune.schemas import LINKS, MOVIES, REJECTS, TAGS, conform

UNKNOWN_MOVIE = "movie is not in the movies file"
NO_GENRES = "(no genres listed)"
_CLOSING_YEAR = r"\((1[89]\d\d|20\d\d)\)\s*$"


def read_movies(folder: Path, layout: Layout, scratch: Path) -> Sifted:
    """Movies, schema MOVIES, sorted by id. Of two rows with one id the first counts. Titles stay as they are.

    Raises:
        InputError: the file is empty, has another header, or not one usable row.
    """
    table = layout.tables["movies"]
    repeated = Check("movieId", ~pl.col("movieId").is_first_distinct(), "movie id stands in an earlier row")
    nameless = Check("title", pl.col("title").str.strip_chars() == "", "no title")
    sifted = sift(
        read_records(folder / table.file, table, scratch), table, [not_integer("movieId"), repeated, nameless]
    )
    if sifted.kept.is_empty():
        raise InputError(
            f"{folder / table.file} has no usable row ({sifted.rejects.height} refused); "
            f"expected movies below {table.describe()}"
        )
    kept = sifted.kept.select(
        movie_id=pl.col("movieId").cast(pl.Int32),
        title="title",
        year=pl.col("title").str.extract(_CLOSING_YEAR).cast(pl.Int16),
        genres=_genres(table),
    )
    return Sifted(conform(kept, MOVIES).sort("movie_id"), sifted.rejects)


def _genres(table: TextTable) -> pl.Expr:
    if "genres" in table.columns:
        listed = pl.col("genres").str.split("|")
    else:  # one flag per genre
        listed = pl.concat_list(pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES_100K)
    element = pl.element()
    real = element.is_not_null() & ~element.is_in(["", NO_GENRES, GENRES_100K[0]])
    return listed.list.eval(element.filter(real))


def read_tags(folder: Path, layout: Layout, movie_ids: pl.Series, scratch: Path) -> Sifted:
    """Tags, schema TAGS, sorted by user, time, movie and tag; empty where the release has none."""
    table = layout.tables.get("tags")
    if table is None or not (folder / table.file).is_file():
        return _nothing(TAGS)
    checks = [
        not_integer("userId"),
        not_integer("movieId"),
        _unknown_movie(movie_ids),
        Check("tag", pl.col("tag").str.strip_chars() == "", "no text"),
        not_integer("timestamp", pl.Int64),
    ]
    sifted = sift(read_records(folder / table.file, table, scratch), table, checks)
    kept = sifted.kept.select(
        user_id=pl.col("userId").cast(pl.Int32),
        movie_id=pl.col("movieId").cast(pl.Int32),
        tag="tag",
        timestamp=pl.col("timestamp").cast(pl.Int64),
    )
    return Sifted(conform(kept, TAGS).sort("user_id", "timestamp", "movie_id", "tag"), sifted.rejects)


def read_links(folder: Path, layout: Layout, movie_ids: pl.Series, scratch: Path) -> Sifted:
    """Links, schema LINKS, sorted by movie; empty where the release has none. Rows without an IMDb id are refused."""
    table = layout.tables.get("links")
    if table is None or not (folder / table.file).is_file():
        return _nothing(LINKS)
    digits = pl.col("imdbId").str.strip_prefix("tt")
    checks = [
        not_integer("movieId"),
        _unknown_movie(movie_ids),
        Check("movieId", ~pl.col("movieId").is_first_distinct(), "movie id stands in an earlier row"),
        Check("imdbId", ~digits.str.contains(r"^[0-9]{1,10}$"), "not an IMDb id"),
    ]
    sifted = sift(read_records(folder / table.file, table, scratch), table, checks)
    kept = sifted.kept.select(movie_id=pl.col("movieId").cast(pl.Int32), imdb_id=pl.lit("tt") + digits.str.zfill(7))
    return Sifted(conform(kept, LINKS).sort("movie_id"), sifted.rejects)


def _unknown_movie(movie_ids: pl.Series) -> Check:
    known = pl.col("movieId").cast(pl.Int32, strict=False).is_in(movie_ids.to_list())
    return Check("movieId", ~known, UNKNOWN_MOVIE)


def _nothing(schema: pl.Schema) -> Sifted:
    return Sifted(pl.DataFrame(schema=schema), pl.DataFrame(schema=REJECTS))
