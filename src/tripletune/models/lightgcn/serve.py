# Shape letters in this file: U users, S places of a list, M films, D vector width
"""LightGCN for retrieval: film vectors, and users pooled from their likes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from tripletune.models.serving.catalogue import (
    Catalogue,
    Fit,
    in_catalogue_order,
    read_pooling,
    read_table,
    read_tensors,
)
from tripletune.models.serving.retriever import Histories, RetrieverSpec
from tripletune.models.serving.topk import Ints, product_blocks, top_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class LightGCNFit(Fit):
    """LightGCN: score of a film = <user, ``movie_vectors``> + ``bias``."""

    movie_vectors_MD: Tensor

    def top(self, name: str, histories: Histories, depth: int) -> Ints:
        """``Ranker.top``: films by score."""
        blocks = product_blocks(histories.lightgcn_UD, self.movie_vectors_MD, self.bias_M)
        return top_columns(blocks, histories.num_users, histories.seen, depth)[0]

    def in_order(self, films_US: Ints, users_UD: Tensor) -> Ints:
        """Columns (U, S) sorted by this model's score, best first, ties by the lower column; -1 stays at the end."""
        vectors_USD = self.movie_vectors_MD[np.maximum(films_US, 0)]
        scores_US = ((vectors_USD * users_UD[:, None, :]).sum(dim=2) + self.bias_M[np.maximum(films_US, 0)]).numpy()
        order_US = np.lexsort((films_US, np.where(films_US >= 0, -scores_US, np.inf)), axis=1)
        return np.take_along_axis(films_US, order_US, axis=1)


def load_lightgcn(folder: Path, seed: int, fits: Iterable[str] = ("a", "b")) -> dict[str, LightGCNFit]:
    """Read LightGCN's fits.

    Raises:
        InputError: a file is missing, damaged, not finite, or does not belong to the others.
    """
    catalogue = Catalogue(read_table(folder / "movies.parquet").sort("row")["movie_id"].to_numpy(), seed)
    loaded = {}
    for fit in fits:
        tensors = read_tensors(folder / f"fit_{fit}.safetensors", ("movie_vectors", "pool_vectors", "movie_bias"))
        films = in_catalogue_order(folder / f"fit_{fit}.safetensors", tensors, catalogue)
        loaded[fit] = LightGCNFit(
            catalogue=catalogue,
            pool_vectors_MD=films["pool_vectors"],
            bias_M=films["movie_bias"],
            movie_vectors_MD=films["movie_vectors"],
            **read_pooling(folder),
        )
    return loaded


RETRIEVER = RetrieverSpec(name="lightgcn", lists=("lightgcn",), load=lambda folder, serving: serving.lightgcn)
