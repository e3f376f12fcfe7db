"""Columns of the knowledge stage's files."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns

ENTITY_KINDS = pl.Enum(["movie", "genre", "decade", "tag", "person", "other"])
ENTITIES = columns({"entity_id": pl.Int32, "key": pl.String, "kind": ENTITY_KINDS, "name": pl.String})
"""knowledge/entities.parquet: dense ids in order of kind and key; ``key`` such as ``movie:1``, ``genre:Drama``,
``person:nm0000116`` is stable across runs; ``name`` is null where the sources give none.

Columns:
    entity_id: dense id, from 0
    key: kind and id in the source, stable from run to run
    kind: one of ENTITY_KINDS
    name: name shown in prompts; null where the sources give none
"""

RELATIONS = columns({"relation_id": pl.Int16, "name": pl.String})
"""knowledge/relations.parquet: names of the relation ids.

Columns:
    relation_id: dense id, from 0
    name: such as ``director``
"""
MOVIE_KEY = "movie:"
"""Begins the key of a film's entity; its movie id follows."""

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
"""Relation ids in this order; names from extra triples follow in alphabetical order."""

TRIPLES = columns({"head": pl.Int32, "relation": pl.Int16, "tail": pl.Int32})
"""knowledge/triples.parquet: entity id of a movie, relation id, entity id; unique, sorted.

Columns:
    head: entity id of a film
    relation: relation id
    tail: entity id of the fact
"""

COVERAGE = columns(
    {
        "relation": pl.String,
        "triples": pl.Int64,
        "movies": pl.Int64,
        "share_of_movies": pl.Float64,
        "share_of_ratings": pl.Float64,
    }
)
"""knowledge/coverage.parquet: share of the release covered by each relation.

Columns:
    relation: name of the relation
    triples: its triples
    movies: films that have one
    share_of_movies: of all films of the release
    share_of_ratings: share of all ratings that these films have
"""
