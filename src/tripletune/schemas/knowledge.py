"""Columns of the knowledge stage's files."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns

ENTITY_KINDS = pl.Enum(["movie", "genre", "decade", "tag", "person", "other"])
ENTITIES = columns({"entity_id": pl.Int32, "key": pl.String, "kind": ENTITY_KINDS, "name": pl.String})
"""knowledge/entities.parquet: dense ids in order of kind and key; ``key`` such as ``movie:1``, ``genre:Drama``,
``person:nm0000116`` is stable across nights; ``name`` is null where the sources give none."""

RELATIONS = columns({"relation_id": pl.Int16, "name": pl.String})
RELATION_NAMES = (
    "genre",
    "decade",
    "tag",
    "director",
    "writer",
    "actor",
    "cinematographer",
    "composer",
    "producer",
    "editor",
)
"""Relation ids 0..9; names from extra triples follow in alphabetical order."""

TRIPLES = columns({"head": pl.Int32, "relation": pl.Int16, "tail": pl.Int32})
"""knowledge/triples.parquet: entity id of a movie, relation id, entity id; unique, sorted."""

COVERAGE = columns(
    {
        "relation": pl.String,
        "triples": pl.Int64,
        "movies": pl.Int64,
        "share_of_movies": pl.Float64,
        "share_of_ratings": pl.Float64,
    }
)
