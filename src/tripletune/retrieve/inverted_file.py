# Shape letters in this file:
#   V users of the fit, C lists, N rows of all lists, S users of the training sample, U queries, P lists probed,
#   E pairs of query and list, T tiles of a query's scores, K neighbours, D vector width, B queries of a block
"""Approximate nearest users by an inverted file (Jegou, Douze & Schmid, TPAMI 2011, without compression).

Users lie in lists by the nearest centre of a k-means; a query is compared with the users of the lists nearest to it, up
to ``SCANNED`` of them. So its cost grows with the number of lists alone, and that by little. Products run in blocks of
one shape on one thread: a query's neighbours depend neither on the other queries nor on the number of threads. Recall
is in benchmarks/similar_users.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tripletune.models.serving.topk import BLOCK, Floats, Ints, Ragged, product_blocks, top_columns
from tripletune.threads import one_thread

SCANNED = 8192
"""Users that a query is compared with, at most."""
LIST_USERS = 192
"""Mean length of a list."""
TRAINED_PER_LIST = 32
"""Users per list that the centres are trained on."""
ROUNDS = 6
"""Rounds of k-means; recall does not grow with more."""
TILE = 64
"""Lists are padded to whole tiles of users."""
LONGEST = 8 * TILE
"""Longer lists are cut into several with the same centre: all can be scanned, and blocks stay in the cache."""
QUERIES_AT_ONCE = 2048
"""Queries whose scores are held at a time, 64 MB; the more, the fuller are the blocks of those that share a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InvertedFile:
    """Users' vectors by list."""

    centres_CD: Tensor
    vectors_ND: Tensor
    """In the order of lists, padded with zeros."""
    place_N: Ints
    """Row of the user in the vectors given to ``build``; -1 pads."""
    first_C: Ints
    """First tile of each list; one more than there are lists."""
    length_C: Ints

    @classmethod
    def build(cls, vectors_VD: Tensor) -> InvertedFile:
        """Cluster and sort users.

        Args:
            vectors_VD: at least one, in a seeded order: the first ones are the centres before the first round.
        """
        num_lists = math.ceil(len(vectors_VD) / LIST_USERS)
        sample_SD = vectors_VD[: num_lists * TRAINED_PER_LIST].contiguous()
        centres_CD = sample_SD[:num_lists].clone()
        with one_thread():
            for _ in range(ROUNDS):
                list_S = torch.from_numpy(_nearest_centres(sample_SD, centres_CD, 1)[:, 0])
                size_C1 = torch.bincount(list_S, minlength=num_lists).unsqueeze(1)
                sum_CD = torch.zeros_like(centres_CD).index_add_(0, list_S, sample_SD)
                centres_CD = torch.where(size_C1 > 0, sum_CD / size_C1.clamp(min=1), centres_CD)
        list_V, centres_CD = _cut_long_lists(_nearest_centres(vectors_VD, centres_CD, 1)[:, 0], centres_CD)
        length_C = np.bincount(list_V).astype(np.int64)
        first_C = np.concatenate([[0], np.cumsum(-(-length_C // TILE))]).astype(np.int64)
        order_V = np.argsort(list_V, kind="stable")
        before_C = np.cumsum(length_C) - length_C
        row_V = np.arange(len(order_V)) + np.repeat(first_C[:-1] * TILE - before_C, length_C)
        place_N = np.full(first_C[-1] * TILE, -1, dtype=np.int64)
        place_N[row_V] = order_V
        vectors_ND = vectors_VD.new_zeros(len(place_N), vectors_VD.shape[1])
        vectors_ND[torch.from_numpy(row_V)] = vectors_VD[torch.from_numpy(order_V)]
        return cls(
            centres_CD=centres_CD,
            vectors_ND=vectors_ND,
            place_N=place_N,
            first_C=first_C,
            length_C=length_C,
        )

    def nearest(self, vectors_UD: Tensor, k: int) -> tuple[Ints, Floats]:
        """The ``k`` users with the highest products among those scanned, best first.

        Returns:
            ``place_UK`` (-1 where fewer are scanned) and ``product_UK`` (``-inf`` there).
        """
        parts = [
            self._nearest(vectors_UD[start : start + QUERIES_AT_ONCE], k)
            for start in range(0, max(1, len(vectors_UD)), QUERIES_AT_ONCE)
        ]
        place_UK, product_UK = (np.concatenate(part) for part in zip(*parts, strict=True))
        return place_UK, product_UK

    def _nearest(self, vectors_UD: Tensor, k: int) -> tuple[Ints, Floats]:
        num, width = len(vectors_UD), SCANNED // TILE
        query_E, list_E, tile_E = self._probe(vectors_UD, width)
        scores_TN = vectors_UD.new_full((num * width, TILE), -torch.inf)
        row_T = np.zeros(num * width, dtype=np.int64)
        by_list = Ragged.from_pairs(list_E, np.arange(len(list_E)), len(self.length_C))
        with one_thread():
            for number in np.flatnonzero(np.diff(by_list.offsets)).tolist():
                e_B = by_list.values[by_list.offsets[number] : by_list.offsets[number + 1]]
                tiles = self.first_C[number + 1] - self.first_C[number]
                target_T = ((query_E[e_B] * width + tile_E[e_B])[:, None] + np.arange(tiles)).ravel()
                row_T[target_T] = np.tile(np.arange(self.first_C[number], self.first_C[number + 1]), len(e_B))
                scores_BN = self._scores(number, vectors_UD[torch.from_numpy(query_E[e_B])])
                scores_TN.index_copy_(0, torch.from_numpy(target_T), scores_BN.view(-1, TILE))
        scores_US = scores_TN.view(num, width * TILE)
        column_UK, product_UK = top_columns(lambda start, stop: scores_US[start:stop], num, _nothing_masked(num), k)
        tile_UK = row_T.reshape(num, width)[np.arange(num)[:, None], np.maximum(column_UK, 0) // TILE]
        place_UK = self.place_N[tile_UK * TILE + np.maximum(column_UK, 0) % TILE]
        return np.where(column_UK >= 0, place_UK, -1), product_UK

    def _probe(self, vectors_UD: Tensor, width: int) -> tuple[Ints, Ints, Ints]:
        """The lists of each query, nearest first, while they fit into ``width`` tiles: query, list and first tile."""
        list_UP = _nearest_centres(vectors_UD, self.centres_CD, min(width, len(self.centres_CD)))
        tiles_UP = np.diff(self.first_C)[list_UP]
        end_UP = np.cumsum(tiles_UP, axis=1)
        query_E, probe_E = np.nonzero(end_UP <= width)
        return query_E, list_UP[query_E, probe_E], (end_UP - tiles_UP)[query_E, probe_E]

    def _scores(self, number: int, vectors_BD: Tensor) -> Tensor:
        """Products with the users of a list, ``-inf`` for its padding."""
        start, stop = self.first_C[number] * TILE, self.first_C[number + 1] * TILE
        num = len(vectors_BD)
        padded_BD = vectors_BD.new_zeros(-(-num // BLOCK) * BLOCK, vectors_BD.shape[1])
        padded_BD[:num] = vectors_BD
        scores_BN = vectors_BD.new_empty(len(padded_BD), stop - start)
        users_DN = self.vectors_ND[start:stop].T
        for row in range(0, len(padded_BD), BLOCK):
            torch.mm(padded_BD[row : row + BLOCK], users_DN, out=scores_BN[row : row + BLOCK])
        scores_BN[:, self.length_C[number] :] = -torch.inf
        return scores_BN[:num]


def _cut_long_lists(list_V: Ints, centres_CD: Tensor) -> tuple[Ints, Tensor]:
    """Number the lists again: none is empty or longer than ``LONGEST``."""
    length_C = np.bincount(list_V, minlength=len(centres_CD))
    pieces_C = -(-length_C // LONGEST)
    order_V = np.argsort(list_V, kind="stable")
    rank_V = np.empty_like(order_V)
    rank_V[order_V] = np.arange(len(order_V)) - np.repeat(np.cumsum(length_C) - length_C, length_C)
    cut_V = (np.cumsum(pieces_C) - pieces_C)[list_V] + rank_V // LONGEST
    return cut_V, centres_CD.repeat_interleave(torch.from_numpy(pieces_C), dim=0)


def _nearest_centres(vectors_UD: Tensor, centres_CD: Tensor, k: int) -> Ints:
    """The ``k`` nearest centres of each vector (U, K), nearest first: those of least squared distance."""
    num = len(vectors_UD)
    blocks = product_blocks(vectors_UD, centres_CD, -centres_CD.square().sum(dim=1) / 2)
    return top_columns(blocks, num, _nothing_masked(num), k)[0]


def _nothing_masked(num: int) -> Ragged:
    return Ragged(np.zeros(num + 1, dtype=np.int64), np.empty(0, dtype=np.int64))
