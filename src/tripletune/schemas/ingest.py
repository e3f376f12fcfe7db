"""Columns of the ingest stage's files. Movie ids, user ids and times are MovieLens's own."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

import polars as pl

from tripletune.schemas.base import columns


def midnight(day: date) -> int:
    """Start of a day (UTC) as in a column ``timestamp``: whole seconds since 1970."""
    return int(datetime.combine(day, time.min, UTC).timestamp())


RATINGS = columns({"user_id": pl.Int32, "movie_id": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64})
"""ingest/ratings.parquet: one row per kept rating, sorted by user and movie; seconds since 1970 UTC."""

ORDER = columns({"row": pl.UInt32})
"""ingest/order.parquet, not of a feed: row by row as in ratings.parquet; read by split.tie_order = "file" alone.

Columns:
    row: line of the rating in the release's file
"""

MOVIES = columns({"movie_id": pl.Int32, "title": pl.String, "year": pl.Int16, "genres": pl.List(pl.String)})
"""ingest/movies.parquet: ``title`` as in the release; ``year`` from its closing brackets, null if none;
``genres`` is empty for "(no genres listed)".

Columns:
    title: as in the release
    year: from the title's closing brackets; null if there are none
    genres: as in the release; empty for "(no genres listed)"
"""

TAGS = columns({"user_id": pl.Int32, "movie_id": pl.Int32, "tag": pl.String, "timestamp": pl.Int64})
"""ingest/tags.parquet: one row per tag that a user gave a film.

Columns:
    tag: the user's words, as in the release
"""

LINKS = columns({"movie_id": pl.Int32, "imdb_id": pl.String})
"""ingest/links.parquet: ``imdb_id`` as in IMDb's dumps: ``tt`` and at least seven digits.

Columns:
    imdb_id: IMDb's id of the film
"""

USERS = columns({"user_id": pl.Int32, "gender": pl.String, "age": pl.Int32, "occupation": pl.String, "zip": pl.String})
"""ingest/users.parquet: demographics of ml-1m (codes) and ml-100k (words); empty for the other releases.

Columns:
    gender: as in the release
    age: in ml-1m the code of an age group, in ml-100k years
    occupation: a code in ml-1m, a word in ml-100k
    zip: the user's postal code
"""

REJECTS = columns({"file": pl.String, "line": pl.Int64, "column": pl.String, "value": pl.String, "reason": pl.String})
"""ingest/rejects.parquet: rejected rows; ``line`` counts from 1, the header included.

Columns:
    file: name of the file in the release or feed
    line: line of the row in the file, from 1
    column: column at fault
    value: the rejected value
    reason: the rule it broke
"""
