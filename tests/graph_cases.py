"""A small split and knowledge graph with planted tastes, for the tests of the two specialists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from tripletune.schemas.base import conform
from tripletune.schemas.knowledge import ENTITIES, RELATIONS, TRIPLES
from tripletune.schemas.split import SPLIT
from tripletune.store.catalogue import write_catalogue

NUM_MOVIES = 60
NUM_DIRECTORS = 6
FIRST_MOVIE = 100
LIKES = 12


def director_of(movie: int) -> int:
    """Each director made ten films."""
    return movie % NUM_DIRECTORS


def plant_split(folder: Path, *, num_viewers: int = 60, hidden_shift: int = 0) -> None:
    """Users who like films of three directors of one parity, in two shards; every tenth user is unseen.

    Args:
        hidden_shift: 0 or 1: moves the films of rows that must not train fit a (test, valid, unseen users) so far.
    """
    rng = np.random.default_rng(5)
    labels = ["graph"] * (LIKES - 4) + ["target"] * 2 + ["valid", "test"]
    rows = []
    for user in range(1, num_viewers + 1):
        mine = [movie for movie in range(NUM_MOVIES) if director_of(movie) % 2 == user % 2]
        chosen = rng.choice(mine, LIKES + 1, replace=False)
        unseen = user % 10 == 0
        for position, label in enumerate(labels):
            shift = hidden_shift if unseen or label in ("valid", "test") else 0
            movie = int(chosen[position + shift])
            rows.append((user, FIRST_MOVIE + movie, 5.0, position, position, label, unseen))
        # a low rating of every film in turn keeps the catalogue whole, whatever is hidden
        rows.append((user, FIRST_MOVIE + (user - 1) % NUM_MOVIES, 1.0, LIKES, LIKES, "other", unseen))
    frame = conform(pl.DataFrame(rows, schema=SPLIT.names(), orient="row"), SPLIT)
    write_catalogue(folder, np.arange(FIRST_MOVIE, FIRST_MOVIE + NUM_MOVIES))
    for shard in range(2):
        part = folder / f"shard={shard:03d}" / "part.parquet"
        part.parent.mkdir(parents=True)
        frame.filter(pl.col("user_id") % 2 == shard).write_parquet(part)


def plant_knowledge(folder: Path) -> None:
    """Each film has a director, a genre that all share, and a decade without information; film 0 has no triple."""
    keys = [
        *(("movie", f"movie:{FIRST_MOVIE + movie}", f"Film {movie}") for movie in range(NUM_MOVIES)),
        ("genre", "genre:Drama", "Drama"),
        *(("decade", f"decade:{decade}", decade) for decade in ("1980s", "1990s")),
        *(("person", f"person:nm{number}", f"Director {number}") for number in range(NUM_DIRECTORS)),
    ]
    entities = pl.DataFrame(keys, schema=["kind", "key", "name"], orient="row").with_row_index("entity_id")
    number = dict(zip(entities["key"], entities["entity_id"], strict=True))
    triples = []
    for movie in range(1, NUM_MOVIES):
        head = number[f"movie:{FIRST_MOVIE + movie}"]
        triples.append((head, 0, number["genre:Drama"]))
        triples.append((head, 1, number["decade:1980s" if movie % 4 < 2 else "decade:1990s"]))
        triples.append((head, 2, number[f"person:nm{director_of(movie)}"]))
    folder.mkdir(parents=True)
    conform(entities, ENTITIES).write_parquet(folder / "entities.parquet")
    relations = pl.DataFrame({"relation_id": [0, 1, 2], "name": ["genre", "decade", "director"]})
    conform(relations, RELATIONS).write_parquet(folder / "relations.parquet")
    table = pl.DataFrame(triples, schema=TRIPLES.names(), orient="row")
    conform(table, TRIPLES).sort(TRIPLES.names()).write_parquet(folder / "triples.parquet")
