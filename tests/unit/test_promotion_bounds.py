"""How few users a promotion may rest on, what its reason says, and which rows it reads."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tripletune.judges import judges
from tripletune.promote.decision import PromotionDecision, decide_promotion, promotion_scores


def scores(*values: float) -> pl.DataFrame:
    return pl.DataFrame({"user_id": range(len(values)), "ndcg_at_5": values})


def decide(tonight: pl.DataFrame, champion: pl.DataFrame) -> PromotionDecision:
    return decide_promotion(tonight, champion, margin=0.01, confidence=0.9, resamples=200, seed=0)


def test_two_users_are_enough_and_one_is_not() -> None:
    champion = scores(0.25, 0.5)
    two = decide(scores(0.5, 0.75), champion)
    assert (two.promote, two.difference, two.lower_bound, two.num_viewers) == (True, 0.25, 0.25, 2)
    one = decide(scores(0.5), champion)
    assert (one.promote, one.difference, one.lower_bound, one.num_viewers) == (False, None, None, 1)
    assert "only 1 " in one.reason
    assert "at least 2 " in one.reason


@pytest.mark.parametrize(("gain", "verdict"), [(0.25, "is above the allowed"), (-0.25, "is not above the allowed")])
def test_the_reason_says_on_which_side_of_the_margin_the_bound_lies(gain: float, verdict: str) -> None:
    decision = decide(scores(0.5 + gain, 0.5 + gain, 0.5 + gain), scores(0.5, 0.5, 0.5))
    assert decision.promote is (gain > 0)
    assert f"differs from the champion's by {gain:+.4f} over 3 " in decision.reason
    assert decision.reason.endswith(f"90% bound {gain:+.4f} {verdict} -0.0100")


def test_only_the_tuned_models_valid_answers_count_in_order_of_user(tmp_path: Path) -> None:
    rows = [
        (7, "tuned", "valid", 0.5),
        (3, "tuned", "valid", 0.25),
        (3, "tuned", "test", 1.0),
        (3, "untuned", "valid", 0.75),
        (3, "retriever", "valid", 0.625),
        (9, "retriever", "test", 0.125),
    ]
    pl.DataFrame(rows, schema=["user_id", "row", "purpose", "ndcg_at_5"], orient="row").write_parquet(tmp_path / "p")
    users = pl.Series([3, 7], dtype=pl.Int64)
    seed = next(seed for seed in range(100) if judges(users, seed).all())
    assert promotion_scores(tmp_path / "p", seed).rows() == [(3, 0.25), (7, 0.5)]
    served = [*rows, (3, "tuned+retriever", "valid", 0.125), (7, "tuned+retriever", "valid", 0.0)]
    pl.DataFrame(served, schema=["user_id", "row", "purpose", "ndcg_at_5"], orient="row").write_parquet(tmp_path / "s")
    assert promotion_scores(tmp_path / "s", seed).rows() == [(3, 0.125), (7, 0.0)]
    seed = next(seed for seed in range(100) if judges(users, seed).to_list() == [False, True])
    assert promotion_scores(tmp_path / "p", seed).rows() == [(7, 0.5)]
