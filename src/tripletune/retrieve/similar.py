# Shape letters in this file:
#   U viewers asked about, V viewers of the fit, M films, D vector width, K neighbours, F films suggested, B block
"""What similar viewers liked: the second half of hint 1.

Neighbours are the warm viewers whose LightGCN vectors have the highest cosine with the viewer's own. Their vectors are
pooled from, and their likes are, the rows of the same fit; so training hints know nothing that fit a was not given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from tripletune.retrieve.specialists import TIES, LightGCNFit, Likes
from tripletune.retrieve.topk import Ints, Ragged, product_blocks, top_columns
from tripletune.retrieve.viewers import with_age
from tripletune.stable_hash import mix

FIT_LABELS = {"a": ("graph",), "b": ("graph", "target")}
"""Labels of the likes that a fit was trained on."""


def fit_likes(rows: pl.LazyFrame, fit: str) -> pl.DataFrame:
    """The rows of a fit: likes of warm viewers, ``user_id, movie_id, age``."""
    of_fit = pl.col("label").is_in(FIT_LABELS[fit]) & ~pl.col("unseen")
    return with_age(rows.filter(of_fit).select("user_id", "movie_id", "position").collect(), ("user_id",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The viewers of one fit, in the order in which ties between them fall (a seeded hash of the id)."""

    users_V: Ints
    unit_VD: Tensor
    likes_VM: sparse.csr_array
    """1 where the viewer liked the film in the rows of the fit."""

    @classmethod
    def build(cls, fit: LightGCNFit, likes: pl.DataFrame, seed: int) -> Neighbours:
        """Pool and index the viewers of ``fit_likes``."""
        ids_V = likes["user_id"].unique().to_numpy().astype(np.int64)
        users_V = ids_V[np.lexsort((ids_V, mix(ids_V, seed + TIES)))]
        viewer_E = _places(users_V, likes["user_id"].to_numpy().astype(np.int64))
        movie_E = likes["movie_id"].to_numpy().astype(np.int64)
        vectors_VD = fit.pool(Likes(viewer_E, movie_E, likes["age"].to_numpy().astype(np.int64)), len(users_V))
        column_E = fit.catalogue.columns(movie_E)
        known_E = column_E >= 0
        ones_E = np.ones(int(known_E.sum()), dtype=np.float32)
        return cls(
            users_V=users_V,
            unit_VD=normalize(vectors_VD, dim=1),
            likes_VM=sparse.csr_array(
                (ones_E, (viewer_E[known_E], column_E[known_E])), shape=(len(users_V), len(fit.catalogue))
            ),
        )

    def like_counts(self) -> Ints:
        """Likes per film (M,) in the rows of the fit: its popularity."""
        return np.bincount(self.likes_VM.indices, minlength=self.likes_VM.shape[1]).astype(np.int64)

    def nearest(self, vectors_UD: Tensor, users_U: Ints, k: int) -> tuple[Ints, Tensor]:
        """Exact nearest viewers by cosine, oneself left out.

        Returns:
            ``viewer_UK`` (places in ``users_V``, -1 where there are fewer) and ``cosine_UK`` (``-inf`` there).
        """
        self_U = _places(self.users_V, users_U)
        known_U = self_U >= 0
        oneself = Ragged.from_pairs(np.flatnonzero(known_U), self_U[known_U], len(users_U))
        blocks = product_blocks(normalize(vectors_UD, dim=1), self.unit_VD)
        viewer_UK, cosine_UK = top_columns(blocks, len(users_U), oneself, k)
        return viewer_UK, torch.from_numpy(cosine_UK)

    def films(self, vectors_UD: Tensor, users_U: Ints, seen: Ragged, k: int, num_films: int) -> Ints:
        """Films that the ``k`` nearest viewers liked and this viewer has not rated, in columns of the catalogue.

        A film's weight is the sum of the cosines (negative ones count nothing) of the neighbours who liked it; ties
        fall in the catalogue's order.

        Args:
            vectors_UD: the viewers' LightGCN vectors.
            users_U: their ids, so that nobody is their own neighbour; ids outside the fit are fine.
            seen: columns rated before the cutoff.

        Returns:
            (U, F) with -1 at the end of rows for which fewer films were liked.
        """
        viewer_UK, cosine_UK = self.nearest(vectors_UD, users_U, k)
        weight_UK = np.where(viewer_UK >= 0, np.maximum(cosine_UK.numpy(), 0.0), 0.0).astype(np.float32)
        places_UK = np.maximum(viewer_UK, 0)

        def votes(start: int, stop: int) -> Tensor:
            starts = np.arange(0, (stop - start) * k + 1, k)
            weight_BV = sparse.csr_array(
                (weight_UK[start:stop].ravel(), places_UK[start:stop].ravel(), starts),
                shape=(stop - start, len(self.users_V)),
            )
            votes_BM = torch.from_numpy((weight_BV @ self.likes_VM).toarray())
            return votes_BM.masked_fill_(votes_BM <= 0, -torch.inf)

        return top_columns(votes, len(users_U), seen, num_films)[0]


def _places(users_V: Ints, wanted: Ints) -> Ints:
    """Place of each user in ``users_V``, -1 for one who is not there."""
    by_id_V = np.argsort(users_V)
    sorted_V = users_V[by_id_V]
    place = np.minimum(np.searchsorted(sorted_V, wanted), len(users_V) - 1)
    return np.where(sorted_V[place] == wanted, by_id_V[place], -1)
