"""When tonight's adapter takes the champion's place."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tripletune.promote.decision import PromotionDecision, decide_promotion

RNG = np.random.default_rng(0)
BASE_U = RNG.random(400)
NOISE_U = RNG.normal(0, 0.02, 400)


def scores(values: np.ndarray, first: int = 0) -> pl.DataFrame:
    return pl.DataFrame({"user_id": np.arange(first, first + len(values)), "ndcg_at_5": values})


def decide(tonight: pl.DataFrame, champion: pl.DataFrame | None, margin: float = 0.01) -> PromotionDecision:
    return decide_promotion(tonight, champion, margin=margin, confidence=0.95, resamples=500, seed=0)


def test_the_first_adapter_is_promoted() -> None:
    decision = decide(scores(BASE_U), None)
    assert decision.promote
    assert "no champion" in decision.reason
    assert (decision.difference, decision.num_viewers) == (None, 400)


@pytest.mark.parametrize(
    ("shift", "promote"), [(0.05, True), (0.0, True), (-0.005, True), (-0.012, False), (-0.05, False)]
)
def test_promoted_unless_worse_by_the_margin(shift: float, promote: bool) -> None:
    # the noise of the paired difference: .02 / sqrt(400) = .001, so .01 of margin decides
    decision = decide(scores(BASE_U + NOISE_U - NOISE_U.mean() + shift), scores(BASE_U))
    assert decision.promote is promote
    assert decision.difference == pytest.approx(shift, abs=1e-9)
    assert decision.lower_bound is not None
    assert decision.lower_bound < shift
    assert f"{shift:+.4f}" in decision.reason


def test_an_unsure_tie_is_not_promoted() -> None:
    """As good on average, but so noisy that it may be worse by more than the margin."""
    noise_U = RNG.normal(0, 0.4, 50)
    decision = decide(scores(BASE_U[:50] + noise_U - noise_U.mean()), scores(BASE_U[:50]))
    assert not decision.promote


def test_a_bound_exactly_at_minus_the_margin_is_not_enough() -> None:
    assert not decide(scores(np.full(5, 0.25)), scores(np.full(5, 0.5)), margin=0.25).promote
    assert decide(scores(np.full(5, 0.5)), scores(np.full(5, 0.5)), margin=0.25).promote


def test_only_viewers_in_both_are_compared_in_any_order() -> None:
    tonight = scores(BASE_U)
    champion = scores(BASE_U[100:] - 0.1, first=100).sample(fraction=1, shuffle=True, seed=1)
    strangers = scores(np.ones(50), first=5000)
    decision = decide(tonight, pl.concat([champion, strangers]))
    assert decision.num_viewers == 300
    assert decision.difference == pytest.approx(0.1)
    assert decision == decide(tonight.sample(fraction=1, shuffle=True, seed=2), champion)


def test_no_viewers_in_common_is_a_refusal_with_a_reason() -> None:
    decision = decide(scores(BASE_U), scores(BASE_U, first=9000))
    assert not decision.promote
    assert "0 viewers" in decision.reason
