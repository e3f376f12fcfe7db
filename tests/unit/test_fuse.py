"""Reciprocal rank fusion, by hand and against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tripletune.retrieve.fuse import fuse


def exact(tops: list[np.ndarray], weights: list[int], k: int, length: int) -> list[list[int]]:
    """The definition in fractions, user by user."""
    rows = []
    for viewer in range(len(tops[0])):
        score: dict[int, Fraction] = {}
        for top, weight in zip(tops, weights, strict=True):
            for place, film in enumerate(top[viewer].tolist(), start=1):
                if film >= 0:
                    score[film] = score.get(film, Fraction(0)) + Fraction(weight, k + place)
        best = sorted(score, key=lambda film: (-score[film], film))[:length]
        rows.append(best + [-1] * (length - len(best)))
    return rows


def some_lists(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    tops = []
    for width in (6, 4, 8):
        top_UK = np.stack([rng.permutation(12)[:width] for _ in range(30)])
        top_UK[np.arange(width) >= rng.integers(0, width + 1, 30)[:, None]] = -1
        tops.append(top_UK)
    return tops


@pytest.mark.parametrize("seed", range(5))
def test_fused_lists_are_those_of_exact_fractions(seed):
    tops, weights = some_lists(seed), [3, 1, 2]
    for length in (1, 5, 30):
        assert fuse(tops, weights, 60, length).tolist() == exact(tops, weights, 60, length)


def test_a_worked_example():
    # film 5: 1/61 + 1/62; film 7: 1/62 + 1/61: a tie, the lower column first; 9: 1/63 before 2: 1/64
    tops = [np.array([[5, 7, 9]]), np.array([[7, 5, -1, 2]])]
    assert fuse(tops, [1.0, 1.0], 60.0, 6).tolist() == [[5, 7, 9, 2, -1, -1]]


def test_ties_do_not_hang_on_the_order_of_the_lists():
    # with floats the sums of 1/61, 1/62, 1/63, 1/64 differ in the last bit by the order of adding
    tops = [np.array([row]) for row in ([0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2])]
    for turn in range(4):
        turned = tops[turn:] + tops[:turn]
        assert fuse(turned, [0.1] * 4, 60.0, 4).tolist() == [[0, 1, 2, 3]]


def test_a_list_without_weight_only_fills_up():
    tops = [np.array([[5, 7, 9, -1]]), np.array([[9, 1, 0, 3]])]
    assert fuse(tops, [1.0, 0.0], 60.0, 8).tolist() == [[5, 7, 9, 0, 1, 3, -1, -1]]


def test_a_single_list_keeps_its_order():
    top = some_lists(1)[0]
    assert fuse([top], [0.3], 60.0, 6).tolist() == top.tolist()


def test_a_viewer_is_not_touched_by_the_other_viewers():
    tops = some_lists(2)
    together = fuse(tops, [1, 1, 1], 60.0, 10)
    for viewer in range(30):
        alone = fuse([top[viewer : viewer + 1] for top in tops], [1, 1, 1], 60.0, 10)
        assert alone[0].tolist() == together[viewer].tolist()


def test_nobody_and_empty_lists_give_empty_rows():
    empty = np.full((2, 3), -1)
    assert fuse([empty, empty], [1.0, 1.0], 60.0, 4).tolist() == [[-1] * 4] * 2
    assert fuse([empty[:0]], [1.0], 60.0, 4).shape == (0, 4)


def test_lists_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="2 lists of \\[2, 1\\] users, and 2 weights"):
        fuse([np.zeros((2, 1), dtype=np.int64), np.zeros((1, 1), dtype=np.int64)], [1.0, 1.0], 60.0, 4)


@pytest.mark.parametrize(("once", "twice"), [(2, 9), (9, 2)])
def test_one_first_place_ties_with_two_third_places_where_k_is_one(once: int, twice: int) -> None:
    # 1 / (1 + 1) = 1 / (1 + 3) + 1 / (1 + 3): with any other constant in the formula one of them would win
    tops = [np.array([[once, 5, twice]]), np.array([[6, 7, twice]]), np.array([[-1, -1, -1]])]
    assert fuse(tops, [1.0, 1.0, 1.0], 1.0, 5).tolist() == [[*sorted([once, 6, twice]), 5, 7]]
    # 1/2, 1/3, 1/4 + 1/16, 1/8, 1/12
    assert fuse(tops, [1.0, 0.25, 1.0], 1.0, 5).tolist() == [[once, 5, twice, 6, 7]]


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, 1.0, 1.0]])
def test_each_list_needs_one_weight(weights: list[float]) -> None:
    tops = [np.array([[1, 2]]), np.array([[2, 3]])]
    with pytest.raises(ValueError, match=rf"2 lists of \[1, 1\] users, and {len(weights)} weights"):
        fuse(tops, weights, 60.0, 4)
