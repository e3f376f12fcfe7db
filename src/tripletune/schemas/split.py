"""Columns of the split stage's files. ``position`` counts a user's rows in time order from 0."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns

LIKE_LABELS = ("graph", "target", "valid", "test", "later")
SPLIT_LABELS = pl.Enum([*LIKE_LABELS, "other"])
SPLIT = columns(
    {
        "user_id": pl.Int32,
        "movie_id": pl.Int32,
        "rating": pl.Float32,
        "timestamp": pl.Int64,
        "position": pl.Int32,
        "label": SPLIT_LABELS,
        "unseen": pl.Boolean,
    }
)
"""split/shard=NNN/part.parquet, sorted by user and position. ``LIKE_LABELS`` are the labels of likes: ``graph`` and
``target`` are used in training, ``valid`` and ``test`` are held-out answers, ``later`` (protocol global_time, frozen
sets) is neither, and evidence only for queries with a later cutoff. Every rating below the like threshold is ``other``.
``unseen`` users are in no fit and no training example.

Columns:
    label: role of the row, one of SPLIT_LABELS
"""

CATALOGUE = columns({"movie_id": pl.Int32})
"""split/movies.parquet, ascending: the films that a retriever may rank. All films of the release, those that nobody has
rated too; with ``split.min_interactions`` the films that it keeps.
"""

ASKED = "asked.json"
"""File in the split's folder where ``split.frozen`` is given: ``users``, the users of valid and test queries. Without
it, all users with such a like."""

STARTS = "starts.json"
"""File in the split's folder under the protocol global_time: by purpose, ``valid`` and ``test``, the first second (UTC)
from which on likes are its answers."""

FROZEN = columns(
    {
        "user_id": pl.Int32,
        "purpose": pl.Enum(["valid", "test"]),
        "movie_id": pl.Int32,
        "timestamp": pl.Int64,
        "position": pl.Int32,
        "evidence": pl.UInt64,
    }
)
"""The file that ``tripletune freeze`` writes, sorted by user, purpose and position: an answer, its place in the user's
order of time, and a hash of the user's rows up to it.

Columns:
    timestamp: time of the answer
    position: place of the answer in the user's order of time
    movie_id: the answer
    purpose: valid or test
    evidence: hash of the user's rows up to the answer
"""
