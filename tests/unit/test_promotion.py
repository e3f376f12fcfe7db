"""When a new adapter takes the champion's place."""

from __future__ import annotations

from collections.abc import Sequence

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
    assert "0 users" in decision.reason


def decide_first(adapter: pl.DataFrame, baselines: Sequence[tuple[str, pl.DataFrame]]) -> PromotionDecision:
    return decide_promotion(adapter, None, margin=0.5, confidence=0.95, resamples=500, seed=0, baselines=baselines)


@pytest.mark.parametrize("shift", [0.05, 0.001, 0.0, -0.001])
def test_the_first_adapter_is_promoted_unless_it_is_clearly_worse_than_a_baseline(shift: float) -> None:
    # the standard error of the paired difference is .001, so the bound is 1.6 of it above the mean
    adapter = scores(BASE_U + NOISE_U - NOISE_U.mean() + shift)
    decision = decide_first(adapter, [("the retriever's order", scores(BASE_U)), ("the untuned model", scores(BASE_U))])
    assert decision == PromotionDecision(True, "there is no champion yet", None, None, 400)


@pytest.mark.parametrize("worse_than", [0, 1])
def test_the_first_adapter_is_refused_when_one_baseline_is_better_at_the_bound(worse_than: int) -> None:
    """Whatever the margin, which is for champions."""
    adapter = scores(BASE_U + NOISE_U - NOISE_U.mean() - 0.003)
    names = ["the retriever's order", "the untuned model"]
    baselines = [(name, scores(BASE_U - (0.1 if place != worse_than else 0.0))) for place, name in enumerate(names)]
    decision = decide_first(adapter, baselines)
    assert not decision.promote
    assert (
        f"this adapter is worse than {names[worse_than]}: ndcg_at_5 differs by -0.0030 over 400 users"
        in decision.reason
    )
    assert "the one-sided 95% bound -0.001" in decision.reason
    assert (decision.difference, decision.lower_bound, decision.num_viewers) == (None, None, 400)


def test_the_first_adapter_is_compared_on_the_same_users_in_any_order() -> None:
    adapter = scores(BASE_U - 0.1)
    shuffled = scores(BASE_U[100:], first=100).sample(fraction=1, shuffle=True, seed=1)
    decision = decide_first(adapter, [("the retriever's order", pl.concat([shuffled, scores(np.ones(9), first=9000)]))])
    assert "differs by -0.1000 over 300 users" in decision.reason


def test_a_baseline_that_is_better_for_no_user_but_equal_does_not_refuse() -> None:
    assert decide_first(scores(np.full(5, 0.5)), [("the retriever's order", scores(np.full(5, 0.5)))]).promote
    assert not decide_first(scores(np.full(5, 0.5)), [("the retriever's order", scores(np.full(5, 0.51)))]).promote


@pytest.mark.parametrize(("num_users", "promote"), [(0, False), (1, False), (2, True)])
def test_a_first_adapter_needs_two_users_to_be_compared(num_users: int, promote: bool) -> None:
    decision = decide_first(scores(BASE_U), [("the retriever's order", scores(BASE_U[:num_users]))])
    assert decision.promote is promote
    assert promote or f"only {num_users} users" in decision.reason
