"""Knowledge graph in R-GAT's training format: triples grouped by film, films in the order of their ids."""

# Shape letters in this file: M films, N entities, T triples, P given films, X rows of given film and triple
from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from tripletune.errors import InputError
from tripletune.schemas.base import conform
from tripletune.schemas.knowledge import ENTITIES, MOVIE_KEY, RELATIONS, TRIPLES
from tripletune.store.read import read_parquet


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Films, entities, and triples sorted by film, relation, tail; those of film m begin at ``offset_M[m]``."""

    entities: pl.DataFrame
    """Columns ``row, key, name``; row i is node i."""
    relation_names: list[str]
    movie_ids_M: npt.NDArray[np.int32]
    movie_entity_M: Tensor
    movie_T: Tensor
    relation_T: Tensor
    entity_T: Tensor
    offset_M: Tensor
    count_M: Tensor

    @property
    def num_entities(self) -> int:
        """Nodes of the graph."""
        return len(self.entities)

    def to(self, device: torch.device) -> Knowledge:
        """The tensors on another device."""
        moved = {name: value.to(device) for name, value in self._fields() if isinstance(value, Tensor)}
        return Knowledge(**dict(self._fields()) | moved)

    def _fields(self) -> list[tuple[str, Any]]:
        return [(column.name, getattr(self, column.name)) for column in fields(self)]

    def expand(self, movie_P: Tensor) -> tuple[Tensor, Tensor]:
        """Triples of given films: index into ``movie_P`` (ascending) and index of the triple, both (X,)."""
        count_P = self.count_M[movie_P]
        asked_X = torch.repeat_interleave(count_P)
        within_X = torch.arange(asked_X.numel(), device=asked_X.device) - (count_P.cumsum(0) - count_P)[asked_X]
        return asked_X, self.offset_M[movie_P][asked_X] + within_X


def read_knowledge(folder: Path) -> Knowledge:
    """Read the knowledge stage's files.

    Raises:
        InputError: a file is missing or does not fit its schema, a triple's head is no movie, or there are no triples.
    """
    try:
        entities = conform(read_parquet(folder / "entities.parquet"), ENTITIES).sort("entity_id")
        relations = conform(read_parquet(folder / "relations.parquet"), RELATIONS).sort("relation_id")
        triples = conform(read_parquet(folder / "triples.parquet"), TRIPLES)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{folder} does not hold entities, relations and triples ({error}); run knowledge") from None
    movies = entities.filter(pl.col("kind") == "movie").select(
        entity="entity_id", movie_id=pl.col("key").str.strip_prefix(MOVIE_KEY).cast(pl.Int32)
    )
    movies = movies.sort("movie_id").with_row_index("movie")
    known = triples.join(movies, left_on="head", right_on="entity", how="inner")
    if len(known) != len(triples) or not len(triples):
        raise InputError(
            f"{folder / 'triples.parquet'}: {len(triples) - len(known)} of {len(triples)} triples have a head that is "
            "no movie; every triple must start at one, and there must be some: run knowledge again"
        )
    known = known.sort("movie", "relation", "tail")
    movie_T = _ints(known["movie"])
    count_M = torch.bincount(movie_T, minlength=len(movies))
    return Knowledge(
        entities=entities.select(pl.col("entity_id").alias("row"), "key", "name"),
        relation_names=relations["name"].to_list(),
        movie_ids_M=movies["movie_id"].to_numpy(),
        movie_entity_M=_ints(movies["entity"]),
        movie_T=movie_T,
        relation_T=_ints(known["relation"]),
        entity_T=_ints(known["tail"]),
        offset_M=count_M.cumsum(0) - count_M,
        count_M=count_M,
    )


def _ints(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.to_numpy().astype(np.int64))
