# Shape letters in this file: M films, N entities, D vector width
"""R-GAT for retrieval: entity vectors, attention over triples, and users pooled from their likes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from torch import Tensor

from tripletune.errors import InputError
from tripletune.models.serving.catalogue import (
    Catalogue,
    Fit,
    in_catalogue_order,
    read_pooling,
    read_table,
    read_tensors,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RgatFit(Fit):
    """R-GAT: attention over a film's triples, and entity vectors to compare the user with."""

    entity_vectors_ND: Tensor
    entity_rows: pl.DataFrame
    """Columns ``row``, ``entity`` (key)."""
    attention: pl.DataFrame
    """Columns ``movie_id, relation, entity, alpha`` of this fit."""
    beta: float


def load_rgat(folder: Path, seed: int, fits: Iterable[str] = ("a", "b")) -> dict[str, RgatFit]:
    """Read the R-GAT's fits; errors as in ``load_lightgcn``."""
    catalogue = Catalogue(read_table(folder / "movies.parquet").sort("row")["movie_id"].to_numpy(), seed)
    entities = read_table(folder / "entities.parquet").select("row", entity="key")
    attention = read_table(folder / "attention.parquet")
    loaded = {}
    for fit in fits:
        path = folder / f"fit_{fit}.safetensors"
        tensors = read_tensors(path, ("entity_vectors", "pool_vectors", "movie_bias", "beta"))
        if tensors["entity_vectors"].shape[0] != len(entities):
            raise InputError(f"{path} and entities.parquet next to it differ in number of entities; train rgat again")
        films = in_catalogue_order(path, {name: tensors[name] for name in ("pool_vectors", "movie_bias")}, catalogue)
        loaded[fit] = RgatFit(
            catalogue=catalogue,
            pool_vectors_MD=films["pool_vectors"],
            bias_M=films["movie_bias"],
            entity_vectors_ND=tensors["entity_vectors"],
            entity_rows=entities,
            attention=attention.filter(pl.col("fit") == fit).drop("fit"),
            beta=float(tensors["beta"].reshape(-1)[0]),
            **read_pooling(folder),
        )
    return loaded
