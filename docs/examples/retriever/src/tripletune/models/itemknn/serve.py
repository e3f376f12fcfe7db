# Shape letters in this file: U users, M films, N neighbours, B users of one block, K places of a list, E likes
"""Item-kNN as a retriever: a film scores the sum of its similarities to the films that the user liked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from tripletune.errors import InputError
from tripletune.models.serving.catalogue import Catalogue, read_table, read_tensors
from tripletune.models.serving.retriever import Histories, RetrieverSpec, Serving
from tripletune.models.serving.topk import Ints, top_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemKnn:
    """One fit. Films are columns of LightGCN's catalogue."""

    catalogue: Catalogue
    similarity_MM: sparse.csr_array
    """From the liked film of the row to the film of the column, whose neighbour it is."""
    popularity_M: Tensor
    """Share of the fit's likes, below 1: the order of films that are similar to none of a user's."""

    def top(self, name: str, histories: Histories, depth: int) -> Ints:
        """``Ranker.top``."""
        column_E = self.catalogue.columns(histories.likes.movie_E)
        known_E = column_E >= 0
        places_E = histories.likes.user_E[known_E], column_E[known_E]
        ones_E = np.ones(len(column_E[known_E]), dtype=np.float32)
        likes_UM = sparse.csr_array((ones_E, places_E), shape=(histories.num_users, len(self.catalogue)))

        def score_block(start: int, stop: int) -> Tensor:
            scores_BM = torch.from_numpy((likes_UM[start:stop] @ self.similarity_MM).toarray())
            return torch.where(scores_BM > 0, scores_BM, self.popularity_M - 1)

        return top_columns(score_block, histories.num_users, histories.seen, depth)[0]


def load(folder: Path, serving: Serving) -> dict[str, ItemKnn]:
    """Read the fits, and number their films as LightGCN's catalogue does."""
    ids_M = read_table(folder / "movies.parquet").sort("row")["movie_id"].to_numpy()
    column_M = serving.catalogue.columns(ids_M)
    if (column_M < 0).any():
        raise InputError("itemknn and lightgcn were trained on different films; pin both to one run, or neither")
    num_films, loaded = len(serving.catalogue), {}
    for fit in serving.fits:
        tensors = read_tensors(folder / f"fit_{fit}.safetensors", ("neighbours", "similarities", "likes"))
        liked_MN = column_M[tensors["neighbours"].long().numpy()]
        places = liked_MN.ravel(), np.repeat(column_M, liked_MN.shape[1])
        similarities = tensors["similarities"].numpy().ravel()
        popularity_M = torch.zeros(num_films)
        popularity_M[torch.from_numpy(column_M)] = tensors["likes"] / (tensors["likes"].sum() + 1)
        loaded[fit] = ItemKnn(
            catalogue=serving.catalogue,
            similarity_MM=sparse.csr_array((similarities, places), shape=(num_films, num_films)),
            popularity_M=popularity_M,
        )
    return loaded


RETRIEVER = RetrieverSpec(name="itemknn", lists=("itemknn",), load=load)
