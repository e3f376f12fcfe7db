"""When a new adapter takes the champion's place: margin, floors, skipped comparisons, and who is the best version."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from tripletune.promote import rollback
from tripletune.promote.decision import (
    BEST,
    CHAMPION,
    EARLIER,
    RETRIEVER,
    UNTUNED,
    Comparison,
    PromotionDecision,
    Reference,
    Rule,
    decide_promotion,
)

NAMES = (CHAMPION, BEST, EARLIER, RETRIEVER, UNTUNED)
RNG = np.random.default_rng(0)
BASE_U = RNG.random(400)
NOISE_U = RNG.normal(0, 0.02, 400)
NOISE_U -= NOISE_U.mean()
RULE = Rule(0.02, 0.95, min_users=50, resamples=500, seed=0)


def test_a_rollback_is_signed_by_a_user_without_a_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(rollback.getpass, "getuser", nameless)
    assert rollback._who().startswith(f"uid {os.getuid()}@")


def scores(values: np.ndarray, first: int = 0) -> pl.DataFrame:
    return pl.DataFrame({"user_id": np.arange(first, first + len(values)), "ndcg_at_5": values})


def decide(new: pl.DataFrame, *references: Reference, **changes: Any) -> PromotionDecision:
    rule = Rule(**{name: changes.get(name, getattr(RULE, name)) for name in Rule.__slots__})
    return decide_promotion(new, references, rule)


def against(new: pl.DataFrame, theirs: pl.DataFrame, name: str = CHAMPION, **changes: Any) -> PromotionDecision:
    return decide(new, Reference(name, theirs), **changes)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("shift", "promote"), [(0.05, True), (0.0, True), (-0.005, True), (-0.012, False), (-0.05, False)]
)
def test_promoted_unless_worse_than_any_reference_by_a_share_of_its_value(
    name: str, shift: float, promote: bool
) -> None:
    # the noise of the paired difference: .02 / sqrt(400) = .001; 2 % of .5 is .01
    decision = against(scores(BASE_U + NOISE_U + shift), scores(BASE_U), name)
    assert decision.promote is promote
    (made,) = decision.comparisons
    assert made.verdict == ("passed" if promote else "failed")
    assert made.difference == pytest.approx(shift, abs=1e-9)
    assert made.allowed == pytest.approx(-0.02 * BASE_U.mean())
    assert made.lower_bound is not None
    assert made.lower_bound < shift
    assert promote or f"{shift:+.4f}" in decision.reason


def test_the_margin_is_a_share_of_the_references_value() -> None:
    new, theirs = BASE_U + NOISE_U - 0.008, BASE_U
    assert against(scores(new), scores(theirs)).promote
    assert not against(scores(new / 2 - 0.004), scores(theirs / 2)).promote  # .008 of .25 is more than 2 %


def test_bounds_agree_with_scipys_percentile_bootstrap() -> None:
    (made,) = against(scores(BASE_U + NOISE_U), scores(BASE_U), resamples=2000).comparisons
    for side, bound in (("greater", made.lower_bound), ("less", made.upper_bound)):
        result = stats.bootstrap(
            (NOISE_U,),
            np.mean,
            n_resamples=2000,
            confidence_level=0.95,
            alternative=side,
            method="percentile",
            rng=np.random.default_rng(RULE.seed),
        )
        theirs = result.confidence_interval.low if side == "greater" else result.confidence_interval.high
        assert bound == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_tie_that_is_too_noisy_to_tell_is_not_promoted(name: str) -> None:
    noise_U = RNG.normal(0, 0.4, 50)
    assert not against(scores(BASE_U[:50] + noise_U - noise_U.mean()), scores(BASE_U[:50]), name).promote


@pytest.mark.parametrize("value", [0.5, 0.0])
def test_an_adapter_that_equals_its_retriever_on_every_user_passes_the_floor(value: float) -> None:
    """As one whose weight next to the retriever is 0; whatever the margin, and even if nobody finds anything."""
    equal = scores(np.full(60, value))
    assert against(equal, equal, RETRIEVER, relative_margin=0.0).promote
    assert not against(scores(np.full(60, value - 0.01)), equal, RETRIEVER, relative_margin=0.0).promote


@pytest.mark.parametrize("failing", NAMES)
def test_one_failed_comparison_refuses_and_all_are_recorded(failing: str) -> None:
    references = [
        Reference(name, scores(BASE_U - (0.0 if name == failing else 0.2)), version=str(place))
        for place, name in enumerate(NAMES)
    ]
    decision = decide(scores(BASE_U + NOISE_U - 0.05), *references)
    assert not decision.promote
    assert not decision.is_best
    verdicts = {one.name: one.verdict for one in decision.comparisons}
    assert verdicts == {name: "failed" if name == failing else "passed" for name in NAMES}
    assert all(one.num_viewers == 400 and one.value is not None for one in decision.comparisons)
    assert decision.reason.count("differs from") == 1


def test_what_is_not_there_is_skipped_and_recorded_and_the_first_adapter_passes_the_same_floors() -> None:
    missing = [Reference(name, None, why=f"there is no {name} yet") for name in (CHAMPION, BEST, EARLIER)]
    floors = [Reference(RETRIEVER, scores(BASE_U)), Reference(UNTUNED, scores(BASE_U - 0.3))]
    first = decide(scores(BASE_U + NOISE_U), *missing, *floors)
    assert (first.promote, first.is_best, first.difference, first.num_viewers) == (True, True, None, 400)
    assert [(one.verdict, one.reason) for one in first.comparisons[:3]] == [
        ("skipped", f"there is no {name} yet") for name in (CHAMPION, BEST, EARLIER)
    ]
    assert first.reason.startswith("not worse than retriever, untuned; skipped champion: there is no champion yet; ")
    worse = decide(scores(BASE_U + NOISE_U - 0.02), *missing, *floors)
    assert not worse.promote
    assert worse.reason.startswith("ndcg_at_5 differs from that of the retriever's order by -0.0200 over 400 users")


def test_a_version_that_could_not_be_read_refuses() -> None:
    gone = Reference(BEST, None, why="version 2 is kept: it could not be ranked", blocks=True, version="2")
    decision = decide(scores(BASE_U), Reference(CHAMPION, scores(BASE_U - 0.1)), gone)
    assert not decision.promote
    assert decision.comparisons[1] == Comparison(BEST, "2", "failed", gone.why)
    assert decision.reason == gone.why


@pytest.mark.parametrize(("name", "sampled", "verdict"), [(UNTUNED, True, "skipped"), (CHAMPION, False, "failed")])
def test_too_few_users_of_a_reference_skip_a_sample_and_fail_what_ranks_all(
    name: str, sampled: bool, verdict: str
) -> None:
    decision = decide(scores(BASE_U), Reference(name, scores(BASE_U[:49]), sampled=sampled))
    assert decision.comparisons[0].verdict == verdict
    assert decision.promote is sampled
    assert "only 49 users" in decision.comparisons[0].reason
    enough = decide(scores(BASE_U - 0.1), Reference(name, scores(BASE_U[:50]), sampled=sampled))
    assert enough.comparisons[0].verdict == "failed"


def test_only_users_in_both_are_compared_in_any_order() -> None:
    new = scores(BASE_U)
    champion = scores(BASE_U[100:] - 0.1, first=100).sample(fraction=1, shuffle=True, seed=1)
    strangers = scores(np.ones(50), first=5000)
    decision = against(new, pl.concat([champion, strangers]))
    assert decision.num_viewers == 300
    assert decision.difference == pytest.approx(0.1)
    shuffled = against(new.sample(fraction=1, shuffle=True, seed=2), champion)
    assert shuffled.comparisons == decision.comparisons


@pytest.mark.parametrize(("errors", "is_best"), [(0.0, False), (1.2, False), (2.2, True)])
def test_the_title_of_best_version_takes_more_than_a_higher_value(errors: float, is_best: bool) -> None:
    """1.64 standard errors at a confidence of 95 %."""
    error = NOISE_U.std() / np.sqrt(400)
    decision = against(scores(BASE_U + NOISE_U + errors * error), scores(BASE_U), BEST, resamples=2000)
    assert decision.promote
    assert decision.is_best is is_best


def test_quality_cannot_walk_downhill_by_less_than_the_margin_each_time() -> None:
    """Ten adapters, each worse than the one before by .4 of the margin: the champion alone would stop none."""
    best = champion = scores(BASE_U)
    promoted, walked = [], []
    for step in range(1, 11):
        new = scores(BASE_U + NOISE_U / 10 - 0.004 * step)
        before = scores(BASE_U - 0.004 * (step - 1))
        walked.append(against(new, before).promote)
        decision = decide(new, Reference(CHAMPION, champion), Reference(BEST, best))
        promoted.append(decision.promote)
        if decision.promote:
            champion, best = new, new if decision.is_best else best
    assert all(walked)
    assert promoted == [True, True] + [False] * 8
