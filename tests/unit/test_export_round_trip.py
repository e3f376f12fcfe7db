"""The comparison of an export's orders with the run's: what counts as the same, as a tie, and as a difference."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tests.benchmark_scripts import benchmark_script

with benchmark_script("export_round_trip") as round_trip:
    pass
EPS = 2.0**-7
RUN = np.array([1.0, 8.0, 3.0, 7.9375, 2.0, 5.0, 4.0])
"""Candidates 1 and 3 are one step of bfloat16 apart, at the size of the largest."""


def test_a_constant_added_to_all_scores_changes_nothing():
    found = round_trip.compare([RUN], [RUN - 20], EPS)
    assert found == round_trip.Agreement(1, 1, 1, 0, 0.0, pytest.approx(0.0, abs=1e-12))


def test_two_candidates_within_a_step_are_a_tie_and_further_apart_they_are_not():
    tie, wrong = RUN.copy(), RUN.copy()
    tie[[1, 3]] = RUN[[3, 1]]
    wrong[[1, 5]] = RUN[[5, 1]]
    found = round_trip.compare([RUN, RUN, RUN], [RUN, tie, wrong], EPS)
    assert (found.prompts, found.same_five, found.same_order, found.only_ties) == (3, 1, 1, 1)
    assert found.turned == pytest.approx(3 / 8 / EPS), "8 stands behind 5"
    assert found.change == pytest.approx(3.0)


def test_the_largest_lead_turned_is_that_of_any_two_places():
    random = np.random.default_rng(3)
    for _ in range(20):
        scores, order = random.normal(size=9), random.permutation(9).tolist()
        pairs = [scores[b] - scores[a] for place, a in enumerate(order) for b in order[place:]]
        assert round_trip.largest_turned(scores, order) == pytest.approx(max(pairs))


def test_a_label_that_the_server_did_not_return_is_an_error_not_a_last_place():
    examples = pl.DataFrame(
        {"user_id": [7], "prompt": [[{"role": "user", "content": "?"}]], "candidate_letters": [["A", "B"]]}
    )
    tokens = {"A": 10, "B": 11}
    (scores,) = round_trip.label_scores(lambda chat: {11: -0.5, 10: -2.0}, examples, tokens, "gguf")
    assert scores.tolist() == [-2.0, -0.5]
    with pytest.raises(SystemExit, match="gguf: 7: no score of B among 1 tokens"):
        round_trip.label_scores(lambda chat: {10: -2.0}, examples, tokens, "gguf")
