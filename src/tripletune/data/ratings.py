"""The ratings of a MovieLens release, cast while they stream: of 32 million rows only the numbers are held."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tripletune.config import IngestConfig
from tripletune.data.catalogue import UNKNOWN_MOVIE
from tripletune.data.layouts import Layout
from tripletune.data.tables import (
    Check,
    Sifted,
    TextTable,
    field_rejects,
    first_fault,
    line_rejects,
    not_a_record,
    scan_text,
    split_fields,
)
from tripletune.errors import InputError
from tripletune.schemas import RATINGS, REJECTS

_TYPES = {"user_id": "userId", "movie_id": "movieId", "rating": "rating", "timestamp": "timestamp"}


def read_ratings(folder: Path, layout: Layout, movie_ids: pl.Series, settings: IngestConfig, scratch: Path) -> Sifted:
    """Ratings, schema RATINGS, sorted by user, time and movie.

    Of several ratings of one film by one user the newest counts, at equal times the one on the higher line.

    Raises:
        InputError: the file is empty, has another header, or has no rows below it.
    """
    table = layout.tables["ratings"]
    path = folder / table.file
    lines = scan_text(path, table, scratch)
    numbers = [pl.col(text).cast(RATINGS[name], strict=False).alias(name) for name, text in _TYPES.items()]
    typed = split_fields(lines, table).select("line", *numbers, "whole").collect(engine="streaming")
    if typed.is_empty():
        raise InputError(f"{path} has no ratings; expected rows below {table.describe()}")
    checks = _checks(movie_ids, settings)
    typed = typed.with_columns(
        fault=pl.when(pl.col("whole")).then(first_fault(checks)).otherwise(pl.lit(255, pl.UInt8))
    )
    faulty = typed.filter(pl.col("fault").is_not_null()).select("line", "fault")
    good = typed.filter(pl.col("fault").is_null()).drop("fault", "whole")
    older = _older_duplicates(good)
    if older.len():
        good = good.filter(~pl.col("line").is_in(older.implode()))
        faulty = pl.concat([faulty, older.to_frame().with_columns(fault=pl.lit(len(checks), pl.UInt8))])
        checks.append(
            Check("movieId", pl.lit(True), "duplicate: a newer rating of the same film by the same user counts")
        )
    kept = good.drop("line").sort("user_id", "timestamp", "movie_id")
    return Sifted(kept, _rejects(lines, table, checks, faulty))


def _checks(movie_ids: pl.Series, settings: IngestConfig) -> list[Check]:
    low, high = settings.rating_min, settings.rating_max
    return [
        Check("userId", pl.col("user_id").is_null(), "not a whole number"),
        Check("movieId", pl.col("movie_id").is_null(), "not a whole number"),
        Check("rating", pl.col("rating").is_null() | pl.col("rating").is_nan(), "not a number"),
        Check("rating", ~pl.col("rating").is_between(low, high), f"outside {low:g} to {high:g}"),
        Check("timestamp", pl.col("timestamp").is_null(), "not a whole number"),
        Check("movieId", ~pl.col("movie_id").is_in(movie_ids.implode()), UNKNOWN_MOVIE),
    ]


def _older_duplicates(good: pl.DataFrame) -> pl.Series:
    """Lines of the ratings that a newer one of the same film by the same user replaces."""
    key = pl.col("user_id").cast(pl.Int64) * (1 << 32) + pl.col("movie_id")
    keys = good.select(key.alias("key"))["key"]
    # releases come sorted by user and movie, and then a pass over the keys is enough
    if (keys.diff().slice(1) > 0).all():
        return good["line"].clear()
    repeated = good.filter(keys.is_duplicated()).sort("user_id", "movie_id", "timestamp", "line")
    newest = pl.struct("user_id", "movie_id").is_last_distinct()
    return repeated.filter(~newest)["line"]


def _rejects(lines: pl.LazyFrame, table: TextTable, checks: list[Check], faulty: pl.DataFrame) -> pl.DataFrame:
    if faulty.is_empty():
        return pl.DataFrame(schema=REJECTS)
    refused = lines.filter(pl.col("line").is_in(faulty["line"].implode())).collect(engine="streaming")
    refused = refused.join(faulty, on="line")
    fields = split_fields(refused.lazy(), table).collect().join(faulty, on="line")
    parts = [line_rejects(refused.filter(pl.col("fault") == 255), table, not_a_record(table))]
    parts += [
        field_rejects(fields.filter(pl.col("fault") == index), table, check) for index, check in enumerate(checks)
    ]
    return pl.concat(parts).sort("line")
