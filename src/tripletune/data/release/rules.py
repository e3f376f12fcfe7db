"""Row rules of every table, in the order in which faults are reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from tripletune.config import IngestConfig
from tripletune.schemas.ingest import midnight

UNKNOWN_MOVIE = "movie is not in the movies file"
DUPLICATE = "duplicate: another rating of the same film by the same user counts, the newest, or the highest of these"
NOT_UTF8 = "not UTF-8"
_NOT_AN_ID = "not a whole number from 0 to 2147483647"
_REPEATED_MOVIE = "movie id stands in an earlier row"


@dataclass(frozen=True, slots=True)
class Rule:
    """Rows where ``fails`` is true are rejected; ``reason`` and ``column`` are reported."""

    column: str
    fails: pl.Expr
    reason: str


def first_fault(rules: Sequence[Rule]) -> pl.Expr:
    """Index of the first rule that a row fails, as UInt8; null for a good row."""
    return pl.coalesce(pl.when(rule.fails).then(pl.lit(index, pl.UInt8)) for index, rule in enumerate(rules))


def rating_rules(settings: IngestConfig) -> list[Rule]:
    """Rules for a single rating; the columns are typed (schema RATINGS), null where the text is no such number."""
    low, high = settings.rating_min, settings.rating_max
    user, movie, rating, timestamp = (pl.col(name) for name in ("user_id", "movie_id", "rating", "timestamp"))
    return [
        Rule("user_id", user.is_null() | (user < 0), _NOT_AN_ID),
        Rule("movie_id", movie.is_null() | (movie < 0), _NOT_AN_ID),
        Rule("rating", rating.is_null() | rating.is_nan(), "not a number"),
        Rule("rating", ~rating.is_between(low, high), f"outside {low:g} to {high:g}"),
        *_time_rules(timestamp, settings),
    ]


def movie_rules() -> list[Rule]:
    """Rules for the movies of a release, all columns strings, in the order of the file."""
    return [
        _id("movieId"),
        Rule("movieId", _repeated("movieId"), _REPEATED_MOVIE),
        Rule("title", pl.col("title").str.strip_chars() == "", "no title"),
    ]


def tag_rules(movie_ids: pl.Series, settings: IngestConfig) -> list[Rule]:
    """Rules for the tags of a release, all columns strings."""
    return [
        _id("userId"),
        _id("movieId"),
        _unknown_movie(movie_ids),
        Rule("tag", pl.col("tag").str.strip_chars() == "", "no text"),
        *_time_rules(number("timestamp", pl.Int64), settings),
    ]


def link_rules(movie_ids: pl.Series) -> list[Rule]:
    """Rules for the links of a release, all columns strings, in the order of the file."""
    return [
        _id("movieId"),
        _unknown_movie(movie_ids),
        Rule("movieId", _repeated("movieId"), _REPEATED_MOVIE),
        Rule("imdbId", ~imdb_digits().str.contains(r"^[0-9]{1,10}$"), "not an IMDb id"),
    ]


def user_rules() -> list[Rule]:
    """Rules for the demographics of a release, all columns strings, in the order of the file."""
    return [
        _id("userId"),
        Rule("userId", _repeated("userId"), "user id stands in an earlier row"),
        Rule("age", number("age", pl.Int32).is_null(), "not a whole number"),
    ]


def number(column: str, dtype: pl.DataType | type[pl.DataType]) -> pl.Expr:
    """Parse a string column as numbers; null where it holds something else. Surrounding blanks are ignored."""
    return pl.col(column).str.strip_chars().cast(dtype, strict=False)


def imdb_digits() -> pl.Expr:
    """The column imdbId without the prefix ``tt`` that some files write."""
    return pl.col("imdbId").str.strip_chars().str.strip_prefix("tt")


def _id(column: str) -> Rule:
    value = number(column, pl.Int32)
    return Rule(column, value.is_null() | (value < 0), _NOT_AN_ID)


def _repeated(column: str) -> pl.Expr:
    return ~number(column, pl.Int32).is_first_distinct()


def _unknown_movie(movie_ids: pl.Series) -> Rule:
    return Rule("movieId", ~number("movieId", pl.Int32).is_in(movie_ids.implode()), UNKNOWN_MOVIE)


def _time_rules(timestamp: pl.Expr, settings: IngestConfig) -> list[Rule]:
    in_range = timestamp.is_between(midnight(settings.earliest), midnight(settings.latest), closed="left")
    return [
        Rule("timestamp", timestamp.is_null(), "not a whole number"),
        Rule("timestamp", ~in_range, f"not in the seconds from {settings.earliest} to {settings.latest}"),
    ]
