# Shape letters in this file: Q queries, L lists, K places of a list, C films of a query in any list, W weightings tried
"""Choice of the weights by which ranked lists are fused: those that rank held-out likes best.

All weightings on a grid over the simplex are tried, each list alone among them, so the best single list is one of the
candidates, and a handful of parameters is chosen by thousands of likes. Nothing is fitted to the scores of a list.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tripletune.models.serving.topk import Ints
from tripletune.retrieve.fuse import UNIT

PARTS = 10
"""Weights are multiples of one in this many."""
CUTOFF = 10
"""Places of the list that are judged: ndcg at this cutoff."""
NEAR = 1.0
"""Standard errors within which a weighting of fewer lists is as good as the best one."""
QUERIES_AT_ONCE = 256

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranks:
    """Places of each query's films in every list, and which of them is the held-out like."""

    place_QCL: Floats
    """From 1; infinite where a list does not hold the film, and in padding."""
    answer_Q: Ints
    """Column of the like among the films; -1 where no list holds it."""

    @classmethod
    def of(cls, tops: Sequence[Ints], answers_Q: Ints) -> Ranks:
        """Join the lists film by film.

        Args:
            tops: a list per model: films (Q, K), best first, -1 at the end of shorter rows.
            answers_Q: the held-out like of each query.
        """
        films_QS = np.concatenate(tops, axis=1)
        places = [np.broadcast_to(np.arange(1.0, top.shape[1] + 1), top.shape) for top in tops]
        place_QS = np.concatenate(places, axis=1)
        list_S = np.repeat(np.arange(len(tops)), [top.shape[1] for top in tops])
        order_QS = np.argsort(films_QS, axis=1, kind="stable")
        sorted_QS = np.take_along_axis(films_QS, order_QS, axis=1)
        is_new_QS = np.ones_like(sorted_QS, dtype=bool)
        is_new_QS[:, 1:] = sorted_QS[:, 1:] != sorted_QS[:, :-1]
        is_new_QS &= sorted_QS >= 0
        column_QS = np.cumsum(is_new_QS, axis=1) - 1
        place_QCL = np.full((len(films_QS), max(1, int(is_new_QS.sum(axis=1).max(initial=0))), len(tops)), np.inf)
        query_E, at_E = np.nonzero(sorted_QS >= 0)
        of_list_E = list_S[order_QS[query_E, at_E]]
        place_QCL[query_E, column_QS[query_E, at_E], of_list_E] = place_QS[query_E, order_QS[query_E, at_E]]
        answer_Q = np.full(len(films_QS), -1, dtype=np.int64)
        query_E, at_E = np.nonzero(is_new_QS & (sorted_QS == answers_Q[:, None]))
        answer_Q[query_E] = column_QS[query_E, at_E]
        return cls(place_QCL, answer_Q)

    def gains(self, weights_WL: Floats, k: float) -> Floats:
        """ndcg at ``CUTOFF`` of each query's one like under each weighting, (W, Q); ties count as losses.

        Args:
            weights_WL: weightings, not negative.
            k: of the fusion: a film at place r of a list with weight w scores ``w / (k + r)``.
        """
        found_Q = np.flatnonzero(self.answer_Q >= 0)
        gains_WQ = np.zeros((len(weights_WL), len(self.answer_Q)))
        for start in range(0, len(found_Q), QUERIES_AT_ONCE):
            query_B = found_Q[start : start + QUERIES_AT_ONCE]
            value_BCL = UNIT / (k + self.place_QCL[query_B])
            for number, weight_L in enumerate(weights_WL):
                score_BC = np.rint(value_BCL * weight_L).sum(axis=2)  # whole numbers, as the fusion counts
                wanted_B = score_BC[np.arange(len(query_B)), self.answer_Q[query_B]]
                rank_B = (score_BC >= wanted_B[:, None]).sum(axis=1)
                # a like that no list with a weight holds is not ranked
                is_ranked_B = (wanted_B > 0) & (rank_B <= CUTOFF)
                gains_WQ[number, query_B] = np.where(is_ranked_B, 1 / np.log2(rank_B + 1.0), 0.0)
        return gains_WQ


def weightings(num_lists: int) -> Floats:
    """All weights in parts of ``PARTS`` that sum to one, (W, L), those of fewer lists first."""
    rows = list(_compositions(PARTS, num_lists))
    rows.sort(key=lambda row: (sum(part > 0 for part in row), tuple(-part for part in row)))
    return np.array(rows, dtype=np.float64) / PARTS


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    for bars in itertools.combinations(range(total + parts - 1), parts - 1):
        edges = (-1, *bars, total + parts - 1)
        yield tuple(last - first - 1 for first, last in itertools.pairwise(edges))


def best_weighting(gains_WQ: Floats, weights_WL: Floats) -> int:
    """The weighting to use: of those as good as the best within an error, one of the fewest lists, then the best.

    The error is that of the mean difference from the best, over the same queries.
    """
    mean_W = gains_WQ.mean(axis=1)
    best = int(mean_W.argmax())
    behind_WQ = gains_WQ[best] - gains_WQ
    error_W = behind_WQ.std(axis=1) / np.sqrt(gains_WQ.shape[1])
    is_near_W = behind_WQ.mean(axis=1) <= NEAR * error_W
    num_lists_W = (weights_WL > 0).sum(axis=1)
    fewest = num_lists_W[is_near_W].min()
    return int(np.where(is_near_W & (num_lists_W == fewest), mean_W, -1.0).argmax())
