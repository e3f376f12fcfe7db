"""Stage outputs of a small made-up world, in the real layouts, with random specialists: no training needed.

40 users, 60 films. Film 60 has no triple at all; ``person:nm9`` has no name; user 40 is unseen; user 1 dislikes
nothing; user 39 has too few likes for a query.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file

from tripletune.schemas.base import conform
from tripletune.schemas.ingest import MOVIES
from tripletune.schemas.knowledge import ENTITIES, RELATION_NAMES, RELATIONS
from tripletune.schemas.rgat import ATTENTION
from tripletune.schemas.split import SPLIT, STARTS
from tripletune.schemas.training import TRAINED_ON
from tripletune.store.catalogue import write_catalogue

NUM_VIEWERS, NUM_FILMS, NUM_PEOPLE = 40, 60, 12
GENRES = ("Crime", "Drama", "Comedy", "Horror")
SEED = 7


@dataclass(frozen=True)
class World:
    root: Path

    def __getattr__(self, stage: str) -> Path:
        return self.root / stage

    @property
    def specialists(self) -> dict[str, Path]:
        return {"lightgcn": self.lightgcn, "rgat": self.rgat}


def make_world(root: Path) -> World:
    world = World(root)
    for stage in ("ingest", "split", "knowledge", "lightgcn", "rgat", "retrieve", "generate"):
        (root / stage).mkdir(parents=True)
    movies = {
        "movie_id": range(1, NUM_FILMS + 1),
        "title": [f"Film {n} ({1950 + n})" for n in range(1, NUM_FILMS + 1)],
        "year": [1950 + n for n in range(1, NUM_FILMS + 1)],
        "genres": [[GENRES[n % 4]] for n in range(1, NUM_FILMS + 1)],
    }
    pl.DataFrame(movies, schema=MOVIES).write_parquet(world.ingest / "movies.parquet")
    write_split(world, make_rows())
    _write_knowledge(world)
    _write_specialists(world)
    write_trained_on(world)
    return world


def make_rows() -> pl.DataFrame:
    """Split rows of every user: 25 ratings in random order, labelled by hand."""
    rng = np.random.default_rng(1)
    parts = []
    for user in range(1, NUM_VIEWERS + 1):
        ratings = rng.choice([1.0, 2.0, 3.5, 4.0, 4.5, 5.0], 25)
        if user == 1:
            ratings = np.maximum(ratings, 3.5)
        if user == 39:
            ratings = np.minimum(ratings, 3.5)
        liked = np.flatnonzero(ratings >= 4)
        labels = np.full(25, "other", dtype=object)
        labels[liked] = "graph"
        if len(liked) >= 5:
            labels[liked[-1]], labels[liked[-2]] = "test", "valid"
            labels[liked[3:-2][-4:]] = "target"
        parts.append(
            pl.DataFrame(
                {
                    "user_id": np.full(25, user),
                    "movie_id": rng.permutation(NUM_FILMS)[:25] + 1,
                    "rating": ratings,
                    "timestamp": np.arange(25) + 1_000_000,
                    "position": np.arange(25),
                    "label": labels.tolist(),
                    "unseen": np.full(25, user == NUM_VIEWERS),
                }
            )
        )
    return conform(pl.concat(parts), SPLIT)


def write_split(world: World, rows: pl.DataFrame) -> None:
    """Two buckets: even and odd users."""
    write_catalogue(world.split, range(1, NUM_FILMS + 1))
    for shard in (0, 1):
        folder = world.split / f"shard={shard:03d}"
        folder.mkdir(exist_ok=True)
        rows.filter(pl.col("user_id") % 2 == shard).write_parquet(folder / "part.parquet")


DAY = 86_400
FIRST_DAY = {"valid": 25, "test": 30}
"""Days of ``spread_over_days``; the newest ratings before the cutoffs lie before and after them."""


def spread_over_days(world: World) -> None:
    """Give the ratings times of several weeks, and the split one date for all users; the labels stay."""
    rows = read_split(world)
    pace = pl.col("user_id") % 3 + 1
    days = (pl.col("user_id") % 11 + pl.col("position") * pace) * DAY + pl.col("user_id") * 977
    write_split(world, rows.with_columns(timestamp=days.cast(pl.Int64)))
    (world.split / STARTS).write_text(json.dumps({name: day * DAY for name, day in FIRST_DAY.items()}))


def write_trained_on(world: World) -> None:
    """Write the ``trained_on.parquet`` of a training on the split."""
    warm = read_split(world).filter(~pl.col("unseen"))
    parts = [
        warm.filter(pl.col("label").is_in(labels)).with_columns(fit=pl.lit(fit))
        for fit, labels in (("a", ["graph"]), ("b", ["graph", "target"]))
    ]
    conform(pl.concat(parts), TRAINED_ON).write_parquet(world.lightgcn / "trained_on.parquet")


def read_split(world: World) -> pl.DataFrame:
    return pl.read_parquet(world.split / "shard=*" / "part.parquet", hive_partitioning=False).sort(
        "user_id", "position"
    )


def triples() -> pl.DataFrame:
    """A genre for every film but the last; a director and an actor, often the same person; a decade for some."""
    rows = []
    for movie in range(1, NUM_FILMS):
        rows.append((movie, "genre", f"genre:{GENRES[movie % 4]}"))
        rows.append((movie, "director", f"person:nm{movie % NUM_PEOPLE}"))
        rows.append((movie, "actor", f"person:nm{movie % 5}"))
        if movie % 3 == 0:
            rows.append((movie, "decade", f"decade:{(1950 + movie) // 10 * 10}s"))
    return pl.DataFrame(rows, schema={"movie_id": pl.Int32, "relation": pl.String, "entity": pl.String}, orient="row")


def _write_knowledge(world: World) -> None:
    facts = triples()
    keys = [f"movie:{n}" for n in range(1, NUM_FILMS + 1)] + facts["entity"].unique().sort().to_list()
    kinds = [key.split(":")[0] for key in keys]
    names = [None if key == "person:nm9" else key.split(":")[1].replace("nm", "Person ") for key in keys]
    entities = pl.DataFrame({"entity_id": range(len(keys)), "key": keys, "kind": kinds, "name": names}, schema=ENTITIES)
    relations = pl.DataFrame({"relation_id": range(len(RELATION_NAMES)), "name": RELATION_NAMES}, schema=RELATIONS)
    ids = dict(zip(keys, range(len(keys)), strict=True))
    rows = facts.select(
        head=pl.format("movie:{}", "movie_id").replace_strict(ids, return_dtype=pl.Int32),
        relation=pl.col("relation").replace_strict(
            dict(zip(relations["name"], relations["relation_id"], strict=True)), return_dtype=pl.Int16
        ),
        tail=pl.col("entity").replace_strict(ids, return_dtype=pl.Int32),
    ).sort("head", "relation", "tail")
    entities.write_parquet(world.knowledge / "entities.parquet")
    relations.write_parquet(world.knowledge / "relations.parquet")
    rows.write_parquet(world.knowledge / "triples.parquet")


def _write_specialists(world: World) -> None:
    facts, random = triples(), torch.Generator().manual_seed(3)
    films = pl.DataFrame({"row": range(NUM_FILMS), "movie_id": range(1, NUM_FILMS + 1)}).cast(pl.Int32)
    keys = facts["entity"].unique().sort().to_list()
    attention = []
    for fit in ("a", "b"):
        weights = torch.rand(len(facts), generator=random).numpy()
        weighted = facts.with_columns(fit=pl.lit(fit), alpha=pl.Series(weights))
        attention.append(weighted.with_columns(alpha=pl.col("alpha") / pl.col("alpha").sum().over("movie_id")))
        save_file(
            {
                "movie_vectors": torch.randn(NUM_FILMS, 8, generator=random),
                "pool_vectors": torch.randn(NUM_FILMS, 8, generator=random),
                "movie_bias": torch.randn(NUM_FILMS, generator=random) / 10,
            },
            world.lightgcn / f"fit_{fit}.safetensors",
        )
        save_file(
            {
                "entity_vectors": torch.randn(len(keys), 6, generator=random),
                "pool_vectors": torch.randn(NUM_FILMS, 6, generator=random),
                "movie_bias": torch.randn(NUM_FILMS, generator=random) / 10,
                "beta": torch.tensor([1.5]),
            },
            world.rgat / f"fit_{fit}.safetensors",
        )
    conform(pl.concat(attention), ATTENTION).write_parquet(world.rgat / "attention.parquet")
    pl.DataFrame(
        {"row": range(len(keys)), "key": keys, "name": keys}, schema={"row": pl.Int32, "key": str, "name": str}
    ).write_parquet(world.rgat / "entities.parquet")
    for folder in (world.lightgcn, world.rgat):
        films.write_parquet(folder / "movies.parquet")
        (folder / "pooling.json").write_text(json.dumps({"half_life": 3.0, "power": 0.5}))
