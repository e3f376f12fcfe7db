"""Whether tonight's adapter may take the champion's place: a pure decision over per-viewer values.

Not "better than": a nightly model that is as good, and trained on fresher ratings, should go in. So the test is one of
non-inferiority: the one-sided lower bound of the paired difference must be above minus the margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.evaluate.significance import mean_interval

METRIC = "ndcg_at_5"


@dataclass(frozen=True, slots=True)
class PromotionDecision:
    """The decision and what it rests on; the numbers are None where there was nothing to compare."""

    promote: bool
    reason: str
    difference: float | None
    lower_bound: float | None
    num_viewers: int


def promotion_scores(per_viewer: Path) -> pl.DataFrame:
    """What the decision compares: ``user_id, ndcg_at_5`` of the tuned model on valid answers.

    Valid and not test: a champion chosen by its test score would make that score a biased one.

    Args:
        per_viewer: evaluate/per_viewer.parquet.
    """
    return (
        pl.scan_parquet(per_viewer)
        .filter(pl.col("row") == "tuned", pl.col("purpose") == "valid")
        .select("user_id", METRIC)
        .sort("user_id")
        .collect()
    )


def decide_promotion(
    tonight: pl.DataFrame,
    champion: pl.DataFrame | None,
    *,
    margin: float,
    confidence: float,
    resamples: int,
    seed: int,
) -> PromotionDecision:
    """Promote when there is no champion, or when tonight is not worse than it by ``margin`` or more.

    Args:
        tonight, champion: ``user_id`` and ``ndcg_at_5``, a viewer once each; only viewers in both are compared.
        margin: how much worse the mean may be.
        confidence: of the one-sided bound.
        resamples, seed: of the bootstrap.

    Returns:
        A refusal, with the reason, also when fewer than two viewers are in both.
    """
    if champion is None:
        return PromotionDecision(True, "there is no champion yet", None, None, tonight.height)
    both = tonight.join(champion, on="user_id", suffix="_champion", validate="1:1").sort("user_id")
    if both.height < 2:
        reason = f"only {both.height} viewers were ranked by both; at least 2 are needed to compare"
        return PromotionDecision(False, reason, None, None, both.height)
    gain_U = (both[METRIC] - both[f"{METRIC}_champion"]).to_numpy()
    interval = mean_interval(gain_U, confidence=confidence, resamples=resamples, seed=seed)
    assert interval.lower_bound is not None
    promote = interval.lower_bound > -margin
    verdict = "above" if promote else "not above"
    reason = (
        f"{METRIC} differs from the champion's by {interval.value:+.4f} over {both.height} viewers; the one-sided "
        f"{confidence:.0%} bound {interval.lower_bound:+.4f} is {verdict} the allowed {-margin:+.4f}"
    )
    return PromotionDecision(promote, reason, interval.value, interval.lower_bound, both.height)
