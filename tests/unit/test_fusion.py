"""The learned weights of the fused list: the search against plain loops, and the stage on the small world."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tripletune.retrieve.weights import PARTS, Ranks, best_weighting, weightings


def some_lists(seed: int, num_queries: int = 40) -> tuple[list[np.ndarray], np.ndarray]:
    """Three lists of different lengths with gaps at the end, and a held-out film that may be in none."""
    rng = np.random.default_rng(seed)
    tops = []
    for width in (15, 9, 20):
        top_QK = np.stack([rng.permutation(40)[:width] for _ in range(num_queries)])
        top_QK[np.arange(width) >= rng.integers(0, width + 1, num_queries)[:, None]] = -1
        tops.append(top_QK)
    return tops, rng.integers(0, 40, num_queries)


def plain_gain(tops: list[np.ndarray], query: int, answer: int, weights: list[float], k: float) -> float:
    score: dict[int, Fraction] = {}
    for top, weight in zip(tops, weights, strict=True):
        for place, film in enumerate(top[query].tolist(), start=1):
            if film >= 0:
                part = Fraction(round(PARTS * weight), PARTS) / (int(k) + place)
                score[film] = score.get(film, Fraction(0)) + part
    if not score.get(answer):
        return 0.0
    rank = sum(value >= score[answer] for value in score.values())
    return 1 / math.log2(rank + 1) if rank <= 10 else 0.0


@pytest.mark.parametrize("seed", range(3))
def test_gains_are_those_of_plain_loops(seed):
    tops, answers_Q = some_lists(seed)
    weights_WL = weightings(3)[::7]
    got_WQ = Ranks.of(tops, answers_Q).gains(weights_WL, 20.0)
    for weights_L, gains_Q in zip(weights_WL.tolist(), got_WQ.tolist(), strict=True):
        want = [plain_gain(tops, query, int(answer), weights_L, 20.0) for query, answer in enumerate(answers_Q)]
        assert gains_Q == pytest.approx(want)


def test_the_grid_holds_every_weighting_once_and_each_list_alone_first():
    for num_lists in (2, 3, 4):
        weights_WL = weightings(num_lists)
        assert np.allclose(weights_WL.sum(axis=1), 1)
        assert len(np.unique(weights_WL, axis=0)) == len(weights_WL) == math.comb(PARTS + num_lists - 1, num_lists - 1)
        assert weights_WL[:num_lists].tolist() == np.eye(num_lists).tolist()


def test_of_weightings_as_good_as_the_best_the_one_of_the_fewest_lists_is_taken():
    weights_WL = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    rng = np.random.default_rng(0)
    base_Q = rng.random(400)
    clearly = np.stack([base_Q, base_Q - 0.1, base_Q + 0.2 + 0.1 * rng.random(400)])
    assert best_weighting(clearly, weights_WL) == 2
    barely = np.stack([base_Q, base_Q - 0.1, rng.permutation(base_Q) + 0.001])
    assert best_weighting(barely, weights_WL) == 0


def test_without_a_query_there_is_nothing_to_rank():
    nothing = np.zeros((0, 5), dtype=np.int64)
    ranks = Ranks.of([nothing, nothing], np.zeros(0, dtype=np.int64))
    assert ranks.gains(weightings(2), 20.0).shape == (11, 0)
