"""The small tables of a MovieLens release: movies, tags, links and users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from tripletune.config import IngestConfig
from tripletune.data.release.layouts import GENRES_100K, Layout
from tripletune.data.release.rules import Rule, imdb_digits, link_rules, movie_rules, number, tag_rules, user_rules
from tripletune.data.release.tables import Sifted, TextTable, read_table
from tripletune.errors import InputError
from tripletune.schemas.base import conform
from tripletune.schemas.ingest import LINKS, MOVIES, REJECTS, TAGS, USERS

NO_GENRES = "(no genres listed)"
_CLOSING_YEAR = r"\((1[89]\d\d|20\d\d)\)\s*$"


def read_movies(folder: Path, layout: Layout) -> Sifted:
    """Movies, schema MOVIES, sorted by id. Of rows with the same id the first is kept. Titles are unchanged.

    Raises:
        InputError: the file is empty, has another header, or has no usable row.
    """
    table = layout.tables["movies"]
    sifted = read_table(folder / table.file, table, movie_rules())
    if sifted.kept.is_empty():
        raise InputError(
            f"{folder / table.file} has no usable row ({sifted.rejects.height} refused); "
            f"expected movies below {table.describe()}"
        )
    kept = sifted.kept.select(
        movie_id=number("movieId", pl.Int32),
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


def read_tags(folder: Path, layout: Layout, movie_ids: pl.Series, settings: IngestConfig) -> Sifted:
    """Tags, schema TAGS, sorted by user, time, movie and tag; empty where the release has none."""
    sifted = _read_if_there(folder, layout, "tags", tag_rules(movie_ids, settings))
    if sifted is None:
        return _nothing(TAGS)
    kept = sifted.kept.select(
        user_id=number("userId", pl.Int32),
        movie_id=number("movieId", pl.Int32),
        tag="tag",
        timestamp=number("timestamp", pl.Int64),
    )
    return Sifted(conform(kept, TAGS).sort("user_id", "timestamp", "movie_id", "tag"), sifted.rejects)


def read_links(folder: Path, layout: Layout, movie_ids: pl.Series) -> Sifted:
    """Links, schema LINKS, sorted by movie; empty where the release has none. Rows without an IMDb id are rejected."""
    sifted = _read_if_there(folder, layout, "links", link_rules(movie_ids))
    if sifted is None:
        return _nothing(LINKS)
    kept = sifted.kept.select(movie_id=number("movieId", pl.Int32), imdb_id=pl.lit("tt") + imdb_digits().str.zfill(7))
    return Sifted(conform(kept, LINKS).sort("movie_id"), sifted.rejects)


def read_users(folder: Path, layout: Layout) -> Sifted:
    """Demographics, schema USERS, sorted by user; empty where the release has none."""
    sifted = _read_if_there(folder, layout, "users", user_rules())
    if sifted is None:
        return _nothing(USERS)
    kept = sifted.kept.with_columns(user_id=number("userId", pl.Int32), age=number("age", pl.Int32))
    return Sifted(conform(kept, USERS).sort("user_id"), sifted.rejects)


def _read_if_there(folder: Path, layout: Layout, name: str, rules: Sequence[Rule]) -> Sifted | None:
    table = layout.tables.get(name)
    if table is None or not (folder / table.file).is_file():
        return None
    return read_table(folder / table.file, table, rules)


def _nothing(schema: pl.Schema) -> Sifted:
    return Sifted(pl.DataFrame(schema=schema), pl.DataFrame(schema=REJECTS))
