"""Retriever's calibrated log-score, the sum with the model's, and the weight between them."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tripletune.contract import Residual
from tripletune.rank.served import add_retriever
from tripletune.residual import HEAVIEST, calibrate_prior, centre, combine, fit_weight


def drawn(seed: int, examples: int = 400, candidates: int = 6):
    """Logits, prior, targets and shown, the targets drawn from a softmax over .7 times the logits plus the prior."""
    rng = np.random.default_rng(seed)
    logits_EC = rng.normal(size=(examples, candidates)) * 2 + 5
    prior_C = calibrate_prior([[0], [0], [1], [2], [4]], candidates)
    prior_EC = rng.permuted(np.tile(prior_C, (examples, 1)), axis=1)
    score_EC = 0.7 * (logits_EC - logits_EC.mean(axis=1, keepdims=True)) + prior_EC
    chosen_E = (score_EC + rng.gumbel(size=score_EC.shape)).argmax(axis=1)
    return logits_EC, prior_EC, np.eye(candidates)[chosen_E], np.ones((examples, candidates), dtype=bool)


def test_the_prior_is_the_likeliest_of_its_law_and_keeps_the_retrievers_order() -> None:
    rng = np.random.default_rng(1)
    true_C = 1 / (np.arange(1, 21) + 2.0) ** 1.3
    places = [[int(place)] for place in rng.choice(20, size=4000, p=true_C / true_C.sum())]
    found_C = calibrate_prior(places, 20)
    assert np.exp(found_C).sum() == pytest.approx(1)
    assert (np.diff(found_C) < 0).all()
    counts_C = np.bincount([place for (place,) in places], minlength=20)
    grid = [
        -slope * np.log(np.arange(1, 21) + offset)
        for slope in np.linspace(0.5, 2.5, 41)
        for offset in np.linspace(0.1, 8, 60)
    ]
    likeliest = max(float(counts_C @ (energy - np.logaddexp.reduce(energy))) for energy in grid)
    assert float(counts_C @ found_C) >= likeliest - 1e-2


def test_likes_of_one_query_count_as_one() -> None:
    together, apart = calibrate_prior([[0, 1], [2]], 4), calibrate_prior([[0], [1], [2], [2]], 4)
    np.testing.assert_allclose(together, apart, atol=1e-3)
    assert not np.allclose(together, calibrate_prior([[0], [1], [2]], 4), atol=1e-2)


def test_without_a_like_the_prior_still_falls() -> None:
    assert (np.diff(calibrate_prior([], 5)) < 0).all()


def test_the_weight_is_the_likeliest_one() -> None:
    arrays = drawn(3, examples=2000)
    found = fit_weight(*arrays)
    assert found == pytest.approx(0.7, abs=0.08)

    def loss(weight: float) -> float:
        logits_EC, prior_EC, target_EC, _ = arrays
        score_EC = weight * (logits_EC - logits_EC.mean(axis=1, keepdims=True)) + prior_EC
        share_EC = np.exp(score_EC) / np.exp(score_EC).sum(axis=1, keepdims=True)
        return -float(np.log((share_EC * target_EC).sum(axis=1)).mean())

    assert loss(found) <= min(loss(weight) for weight in np.linspace(0, HEAVIEST, 401)) + 1e-6


def test_scores_that_say_nothing_or_the_opposite_have_no_weight() -> None:
    logits_EC, prior_EC, target_EC, shown_EC = drawn(4)
    assert fit_weight(-logits_EC, prior_EC, target_EC, shown_EC) == 0
    assert fit_weight(np.full_like(logits_EC, 3.0), prior_EC, target_EC, shown_EC) == 0
    assert fit_weight(logits_EC[:0], prior_EC[:0], target_EC[:0], shown_EC[:0]) == 0


def test_places_without_a_candidate_take_no_part() -> None:
    arrays = drawn(5)
    logits_EC, prior_EC, target_EC, shown_EC = (
        np.pad(array, ((0, 0), (0, 2)), constant_values=value)
        for array, value in zip(arrays, (99.0, 99.0, 0.0, False), strict=True)
    )
    assert fit_weight(logits_EC, prior_EC, target_EC, shown_EC) == fit_weight(*arrays)
    np.testing.assert_allclose(centre(logits_EC, shown_EC)[:, :6], centre(arrays[0], arrays[3]))
    assert np.isneginf(combine(logits_EC, prior_EC, shown_EC, 1.0)[:, 6:]).all()


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
def test_what_is_served_is_sorted_by_the_sum_that_the_weight_was_fitted_to(weight: float) -> None:
    rng = np.random.default_rng(6)
    prior = calibrate_prior([[0], [1], [1], [3]], 7)
    shown = [[70, 10, 30, 20, 60, 50, 40], [11, 12, 13, 14, 15, 16, 17], [5, 9, 7]]
    retrieved = [[10, 20, 30, 40, 50, 60, 70], [17, 16, 15, 14, 13, 12, 11], [9, 7, 5]]
    logits = [rng.normal(size=len(films)).tolist() for films in shown]
    order = [np.argsort(row)[::-1] for row in logits]
    answered = pl.DataFrame(
        {
            "user_id": [3, 2, 1],
            "answers": [[films[place] for place in places] for films, places in zip(shown, order, strict=True)],
            "scores": [[row[place] for place in places] for row, places in zip(logits, order, strict=True)],
            "text": ["a", "b", "c"],
        },
        schema_overrides={"answers": pl.List(pl.Int32), "scores": pl.List(pl.Float32)},
    )
    films_of = pl.Series(retrieved, dtype=pl.List(pl.Int32))
    served = add_retriever(answered, films_of, Residual(prior=tuple(prior), weight=weight))
    assert served.schema == answered.schema
    assert served.select("user_id", "text").equals(answered.select("user_id", "text"))
    for row, films, first, got in zip(logits, shown, retrieved, served.iter_rows(named=True), strict=True):
        prior_1C = np.array([[prior[first.index(film)] for film in films]])
        score_C = combine(np.array([row]), prior_1C, np.ones((1, len(films)), dtype=bool), weight)[0]
        assert got["answers"] == [films[place] for place in np.argsort(-score_C)]
        assert got["scores"] == pytest.approx(sorted(score_C, reverse=True), abs=1e-6)
        assert weight or got["answers"] == first
