"""How few users a promotion may rest on, what its reason says, and which rows it reads."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest

from tripletune.evaluate.per_user import PER_USER
from tripletune.judges import judges
from tripletune.promote.decision import (
    CHAMPION,
    PromotionDecision,
    Reference,
    Rule,
    decide_promotion,
    promotion_scores,
)


def scores(*values: float) -> pl.DataFrame:
    return pl.DataFrame({"user_id": range(len(values)), "ndcg_at_5": values})


def decide(new: pl.DataFrame, champion: pl.DataFrame, min_users: int = 2) -> PromotionDecision:
    rule = Rule(0.04, 0.9, min_users, resamples=200, seed=0)
    return decide_promotion(new, [Reference(CHAMPION, champion)], rule)


def test_two_users_are_enough_where_the_setting_says_so_and_one_is_not() -> None:
    champion = scores(0.25, 0.5)
    two = decide(scores(0.5, 0.75), champion)
    assert (two.promote, two.difference, two.lower_bound, two.num_viewers) == (True, 0.25, 0.25, 2)
    one = decide(scores(0.5), champion, min_users=1)
    assert (one.promote, one.difference, one.lower_bound, one.num_viewers) == (False, None, None, 1)
    assert "only 1 " in one.reason


@pytest.mark.parametrize(("users", "promote"), [(49, False), (50, True)])
def test_too_few_users_refuse_whatever_they_say(users: int, promote: bool) -> None:
    decision = decide(scores(*[0.75] * users), scores(*[0.25] * 100), min_users=50)
    assert decision.promote is promote
    refusal = "only 49 users of valid judge, and promote.min_users is 50; raise rank.max_viewers, or lower it"
    assert promote or (decision.reason, decision.comparisons) == (refusal, ())


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_a_value_that_is_not_finite_refuses(value: float | None) -> None:
    wrong = pl.DataFrame({"user_id": [0, 1, 2], "ndcg_at_5": [0.5, value, 0.5]})
    decision = decide(wrong, scores(0.25, 0.25, 0.25))
    assert not decision.promote
    assert decision.reason == "ndcg_at_5 on valid is not finite for 1 of 3 users; rank and evaluate again"
    theirs = decide(scores(0.5, 0.5, 0.5), wrong)
    assert not theirs.promote
    assert theirs.reason == "ndcg_at_5 of the champion is not finite; rank and evaluate again"


@pytest.mark.parametrize(("gain", "side"), [(0.25, "not below the allowed"), (-0.25, "below the allowed")])
def test_the_reason_says_on_which_side_of_the_margin_the_bound_lies(gain: float, side: str) -> None:
    (made,) = decide(scores(0.5 + gain, 0.5 + gain, 0.5 + gain), scores(0.5, 0.5, 0.5)).comparisons
    assert (made.verdict == "passed") is (gain > 0)
    assert f"differs from that of the champion by {gain:+.4f} over 3 " in made.reason
    assert made.reason.endswith(f"90% bound {gain:+.4f} is {side} -0.0200")


def test_only_the_tuned_models_valid_answers_count_in_order_of_user(tmp_path: Path) -> None:
    rows = [
        (7, "tuned", "valid", 0.5),
        (3, "tuned", "valid", 0.25),
        (3, "tuned", "test", 1.0),
        (3, "untuned", "valid", 0.75),
        (3, "retriever", "valid", 0.625),
        (9, "retriever", "test", 0.125),
    ]
    plain, summed = tmp_path / "plain", tmp_path / "summed"
    plain.mkdir()
    summed.mkdir()
    pl.DataFrame(rows, schema=["user_id", "row", "purpose", "ndcg_at_5"], orient="row").write_parquet(plain / PER_USER)
    users = pl.Series([3, 7], dtype=pl.Int64)
    seed = next(seed for seed in range(100) if judges(users, seed).all())
    assert promotion_scores(plain, seed).rows() == [(3, 0.25), (7, 0.5)]
    served = [*rows, (3, "tuned+retriever", "valid", 0.125), (7, "tuned+retriever", "valid", 0.0)]
    pl.DataFrame(served, schema=["user_id", "row", "purpose", "ndcg_at_5"], orient="row").write_parquet(
        summed / PER_USER
    )
    assert promotion_scores(summed, seed).rows() == [(3, 0.125), (7, 0.0)]
    assert promotion_scores(plain, seed, "random").is_empty()
    seed = next(seed for seed in range(100) if judges(users, seed).to_list() == [False, True])
    assert promotion_scores(plain, seed).rows() == [(7, 0.5)]
