# Shape letters in this file:
#   U users of the queries, V users of the fit, M films, D vector width, K neighbours, F films suggested, B block
"""Films liked by similar users: the second half of hint 1.

Neighbours are the warm users whose LightGCN vectors have the highest cosine with the user's own. Their vectors and
likes come from the rows of the same fit, so training hints contain nothing outside fit a's training likes. Up to
``RetrieveConfig.similar_exact_users`` users the search is exact; of more it scans those of the nearest clusters. With
``RetrieveConfig.similar_people`` users who agree in age, gender and occupation are more similar.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from tripletune.models.lightgcn.serve import LightGCNFit
from tripletune.models.serving.catalogue import Likes
from tripletune.models.serving.topk import Floats, Ints, Ragged, product_blocks, top_columns
from tripletune.retrieve.inverted_file import InvertedFile
from tripletune.retrieve.people import People
from tripletune.retrieve.places import Places
from tripletune.stable_hash import tie_order

VOTES_AT_ONCE = 64
"""Users whose neighbours' votes are counted at a time: some hundred films each, which fit the cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """The users of one fit, in the order that breaks ties between them (a seeded hash of the id)."""

    users_V: Ints
    place_of: Places
    unit_VD: Tensor
    """Vectors of length 1, then the entries of ``people``. Contiguous along users: ``product_blocks`` would otherwise
    copy them every time."""
    people: People | None
    """None: similarity is the cosine alone."""
    clusters: InvertedFile | None
    """The same vectors by cluster; None: the search is exact."""
    likes_VM: sparse.csr_array
    """1 where the user liked the film in the rows of the fit."""
    like_counts_M: Ints
    """Likes per film in the rows of the fit: its popularity."""

    @classmethod
    def build(
        cls,
        fit: LightGCNFit,
        likes: pl.DataFrame,
        seed: int,
        *,
        exact_users: int | None = None,
        people: People | None = None,
    ) -> Neighbours:
        """Pool and index the users of ``histories.read_fit_likes``.

        Args:
            exact_users: of more users the search is approximate; None: it is exact.
            people: attributes of users.
        """
        ids_E, movie_E, age_E = (likes[name].to_numpy() for name in ("user_id", "movie_id", "age"))
        start_V = np.flatnonzero(np.diff(ids_E, prepend=-1))
        ids_V, count_V = ids_E[start_V].astype(np.int64), np.diff(start_V, append=len(ids_E))
        order_V = tie_order(ids_V, seed)
        by_id = Likes(np.repeat(np.arange(len(ids_V)), count_V), movie_E.astype(np.int64), age_E.astype(np.int64))
        column_E = fit.catalogue.columns(by_id.movie_E)
        known_E = column_E >= 0
        films = Ragged.from_pairs(by_id.user_E[known_E], column_E[known_E], len(ids_V)).rows(order_V)
        shape = len(ids_V), len(fit.catalogue)
        unit_VD = _similarity_vectors(fit.pool(by_id, len(ids_V)), ids_V, people)[torch.from_numpy(order_V)]
        is_large = exact_users is not None and len(ids_V) > exact_users
        return cls(
            users_V=ids_V[order_V],
            place_of=Places(ids_V[order_V]),
            unit_VD=unit_VD.T.contiguous().T,
            people=people,
            clusters=InvertedFile.build(unit_VD) if is_large else None,
            likes_VM=sparse.csr_array(
                (np.ones(len(films.values), dtype=np.float32), films.values, films.offsets), shape=shape
            ),
            like_counts_M=np.bincount(films.values, minlength=shape[1]).astype(np.int64),
        )

    def nearest(self, vectors_UD: Tensor, users_U: Ints, k: int) -> tuple[Ints, Tensor]:
        """Nearest users by similarity, without the user itself.

        Returns:
            ``user_UK`` (places in ``users_V``, -1 where there are fewer) and ``similarity_UK`` (``-inf`` there).
        """
        self_U = self.place_of(users_U)
        query_UD = _similarity_vectors(vectors_UD, users_U, self.people)
        if self.clusters:
            return _without(self_U, *self.clusters.nearest(query_UD, k + 1))
        known_U = self_U >= 0
        oneself = Ragged.from_pairs(np.flatnonzero(known_U), self_U[known_U], len(users_U))
        user_UK, similarity_UK = top_columns(product_blocks(query_UD, self.unit_VD), len(users_U), oneself, k)
        return user_UK, torch.from_numpy(similarity_UK)

    def films(self, vectors_UD: Tensor, users_U: Ints, seen: Ragged, k: int, num_films: int) -> Ints:
        """Films that the ``k`` nearest users liked and this user has not rated, in columns of the catalogue.

        A film's weight is the sum of the similarities (negative ones count 0) of the neighbours who liked it; ties are
        broken by the catalogue's order.

        Args:
            vectors_UD: the users' LightGCN vectors.
            users_U: their ids, so that no user is its own neighbour; ids outside the fit are allowed.
            seen: columns rated before the cutoff.

        Returns:
            (U, F) with -1 at the end of rows with fewer films.
        """
        user_UK, similarity_UK = self.nearest(vectors_UD, users_U, k)
        weight_UK = np.where(user_UK >= 0, np.maximum(similarity_UK.numpy(), 0.0), 0.0).astype(np.float32)
        places_UK = np.maximum(user_UK, 0)
        films_UF = np.full((len(users_U), num_films), -1, dtype=np.int64)
        for start in range(0, len(users_U), VOTES_AT_ONCE):
            rows = slice(start, start + VOTES_AT_ONCE)
            weight_BK = weight_UK[rows]
            weight_BV = sparse.csr_array(
                (weight_BK.ravel(), places_UK[rows].ravel(), np.arange(0, weight_BK.size + 1, k)),
                shape=(len(weight_BK), len(self.users_V)),
            )
            films_UF[rows] = _most_votes(
                weight_BV @ self.likes_VM, *seen.block(start, start + len(weight_BK)), num_films
            )
        return films_UF


def _similarity_vectors(vectors_UD: Tensor, users_U: Ints, people: People | None) -> Tensor:
    """Vectors whose product is the similarity: the cosine, and with ``people`` the weighted agreement of attributes."""
    unit_UD = normalize(vectors_UD, dim=1)
    return unit_UD if people is None else torch.cat([unit_UD, people.vectors(users_U)], dim=1)


def _without(self_U: Ints, user_UK: Ints, similarity_UK: Floats) -> tuple[Ints, Tensor]:
    """Drop the user itself, or else the last place, from each row."""
    is_self_UK = (user_UK == self_U[:, None]) & (user_UK >= 0)
    kept_UK = np.argsort(is_self_UK, axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(user_UK, kept_UK, axis=1), torch.from_numpy(
        np.take_along_axis(similarity_UK, kept_UK, axis=1)
    )


def _most_votes(votes_BM: sparse.csr_array, seen_row_S: Ints, seen_column_S: Ints, num_films: int) -> Ints:
    """The films with the most votes of each row (B, F), ties by the lower column, -1 where fewer have any.

    Only films with a vote are read: some hundreds of many thousands.
    """
    num_rows, num_columns = votes_BM.shape
    counts_B = np.diff(votes_BM.indptr)
    films_BF = np.full((num_rows, num_films), -1, dtype=np.int64)
    filled_B = np.flatnonzero(counts_B)
    if not len(filled_B):
        return films_BF
    row_E = np.repeat(np.arange(num_rows), counts_B)
    is_seen_BM = np.zeros((num_rows, num_columns), dtype=bool)
    is_seen_BM[seen_row_S, seen_column_S] = True
    counts = (votes_BM.data > 0) & ~is_seen_BM[row_E, votes_BM.indices]
    # positive floats sort by their bits; the column in the lower half breaks ties
    key_E = votes_BM.data.astype(np.float32).view(np.int32).astype(np.int64) << 32
    key_E = np.where(counts, key_E | (num_columns - 1 - votes_BM.indices), -1)
    starts = votes_BM.indptr[filled_B]
    for place in range(num_films):
        best_B = np.maximum.reduceat(key_E, starts)
        films_BF[filled_B, place] = np.where(best_B < 0, -1, num_columns - 1 - (best_B & 0xFFFFFFFF))
        key_E[key_E == np.repeat(best_B, counts_B[filled_B])] = -1
    return films_BF
