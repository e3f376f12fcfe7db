"""Ranking metrics against trec_eval and against cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import pytrec_eval

from tripletune.evaluate.metrics import PROMOTION_METRIC, score_lists
from tripletune.ndcg import PROMOTION_CUTOFF

CUTOFFS = (1, 3, 5, 10)


def films(rows: list[list[int]]) -> pl.Series:
    return pl.Series(rows, dtype=pl.List(pl.Int32))


def at(metric: str, k: int, lists: pl.Series, relevant: pl.Series) -> np.ndarray:
    return score_lists(lists, relevant, [k])[f"{metric}_at_{k}"].to_numpy()


@pytest.mark.parametrize("num_relevant", [1, 12])
def test_agrees_with_trec_eval_on_random_rankings(num_relevant: int) -> None:
    rng = np.random.default_rng(0)
    lists = [(rng.permutation(40)[: rng.integers(0, 16)] + 1).tolist() for _ in range(1000)]
    relevant = [(rng.permutation(40)[: rng.integers(1, num_relevant + 1)] + 1).tolist() for _ in range(1000)]
    judge = pytrec_eval.RelevanceEvaluator(
        {str(u): {str(film): 1 for film in row} for u, row in enumerate(relevant)},
        {"ndcg_cut.1,3,5,10", "success.1,3,5,10"},
    )
    # trec_eval ranks by score; a user without any entry would be dropped, and counts 0
    found = judge.evaluate(
        {str(u): {str(f): 100.0 - n for n, f in enumerate(row)} for u, row in enumerate(lists) if row}
    )
    scores = score_lists(films(lists), films(relevant), CUTOFFS)
    for k in CUTOFFS:
        for name, theirs in ((f"hr_at_{k}", f"success_{k}"), (f"ndcg_at_{k}", f"ndcg_cut_{k}")):
            want = [found.get(str(u), {}).get(theirs, 0.0) for u in range(1000)]
            np.testing.assert_allclose(scores[name].to_numpy(), want, atol=1e-9, rtol=0)


def test_one_held_out_film_by_hand() -> None:
    lists = films([[7, 8, 9], [8, 7, 9], [8, 9, 7], [8, 9, 1], [7], []])
    answer = pl.Series([7, 7, 7, 7, 7, 7])
    assert at("hr", 2, lists, answer).tolist() == [1, 1, 0, 0, 1, 0]
    want = [1, 1 / math.log2(3), 0.5, 0, 1, 0]
    np.testing.assert_allclose(at("ndcg", 3, lists, answer), want, rtol=1e-15)


def test_several_held_out_films_by_hand() -> None:
    # hits at ranks 1 and 3 of two shown; three are relevant, the ideal list of three has all of them
    got = at("ndcg", 3, films([[1, 5, 2]]), films([[1, 2, 3]]))
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert got[0] == pytest.approx((1 + 1 / math.log2(4)) / ideal, abs=1e-15)
    # with k = 2 the ideal list is cut at two
    got = at("ndcg", 2, films([[1, 5, 2]]), films([[1, 2, 3]]))
    assert got[0] == pytest.approx(1 / (1 + 1 / math.log2(3)), abs=1e-15)


def test_a_viewer_with_nothing_relevant_is_nan_and_not_zero() -> None:
    lists, relevant = films([[1, 2], [1, 2]]), films([[], [2]])
    assert np.isnan(at("hr", 2, lists, relevant)).tolist() == [True, False]
    assert np.isnan(at("ndcg", 2, lists, relevant)).tolist() == [True, False]


def test_relevant_films_named_twice_count_once() -> None:
    assert at("ndcg", 2, films([[1, 2]]), films([[1, 1]]))[0] == 1.0


@pytest.mark.parametrize(
    ("lists", "relevant", "k", "message"),
    [
        ([[1, 1]], [[1]], 2, "names a film twice"),
        ([[1, None]], [[1]], 2, "holds a null"),
        ([[1]], [[1], [2]], 1, "one per user"),
        ([[1]], [[1]], 0, "at least 1"),
    ],
)
def test_broken_input_is_refused(lists: list[list[int]], relevant: list[list[int]], k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        at("hr", k, films(lists), films(relevant))


def test_no_viewers_give_no_values() -> None:
    assert at("hr", 3, films([]), pl.Series([], dtype=pl.Int32)).shape == (0,)


def test_every_column_is_nan_for_a_user_with_nothing_relevant_even_where_lists_hold_films() -> None:
    scores = score_lists(films([[1, 2], [1, 2], []]), films([[], [2], []]), (1, 2))
    assert np.isnan(scores.to_numpy()).tolist() == [[True] * 4, [False] * 4, [True] * 4]


def test_a_cutoff_of_one_looks_at_the_first_film_alone() -> None:
    assert score_lists(films([[7, 8], [8, 7]]), pl.Series([7, 7]), (1,)).rows() == [(1.0, 1.0), (0.0, 0.0)]


@pytest.mark.parametrize(
    ("lists", "relevant", "message"),
    [
        ([[1], [2, 2], [3, 3]], [[1], [2], [3]], r"number 1 names a film twice: \[2, 2\]"),
        ([[1], [2, None], [None]], [[1], [2], [3]], "^list of .* number 1 holds a null"),
        ([[1], [2], [3]], [[1], [None, 2], [None]], "^relevant of .* number 1 holds a null"),
        ([[1], None, None], [[1], [2], [3]], "^list of .* number 1 holds a null"),
    ],
)
def test_the_first_broken_row_is_the_one_named(lists: list[list[int]], relevant: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_lists(films(lists), films(relevant), (2,))


def test_promotion_compares_a_column_that_its_cutoff_gives() -> None:
    assert PROMOTION_METRIC == "ndcg_at_5"
    assert PROMOTION_METRIC in score_lists(films([[1]]), films([[1]]), (PROMOTION_CUTOFF,)).columns
