"""Decision whether a new adapter takes the champion's place, from values per user alone.

Not "better than": a nightly model that is as good, and trained on fresher ratings, should go in. So the test is one of
non-inferiority: the one-sided lower bound of the paired difference must be above minus the margin.

The first adapter has no champion to be compared with. It is refused only when it is clearly worse than what can be had
without it, the retriever's order or the untuned model: the one-sided upper bound of the paired difference is below 0.
Non-inferiority would ask a few hundred users for more than they can show (on the 500 of the smoke run the bounds of the
difference to the retriever are -.025 and +.007), and nothing would ever be promoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.evaluate.metrics import PROMOTION_METRIC as METRIC
from tripletune.evaluate.significance import mean_interval
from tripletune.judges import judges
from tripletune.schemas.rank import SERVED


@dataclass(frozen=True, slots=True)
class PromotionDecision:
    """The decision and what it rests on; the numbers are None where there was no champion to compare with."""

    promote: bool
    reason: str
    difference: float | None
    lower_bound: float | None
    num_viewers: int
    kept_against_fresh: bool = False
    """Whether a champion that started warm was clearly better than this fresh adapter (``promote.fresh``)."""


SERVED_OR_TUNED = (SERVED, "tuned")
"""What is served: the tuned model with the retriever's scores where there are any, else alone."""


def promotion_scores(per_viewer: Path, seed: int, systems: tuple[str, ...] = SERVED_OR_TUNED) -> pl.DataFrame:
    """What the decision compares: ``user_id, ndcg_at_5`` of a system on valid examples.

    Valid and not test: a champion chosen by its test score would make that score a biased one. And of the users in
    valid only those who judge (``tripletune.judges``): the others selected the weight between both scores.

    Args:
        per_viewer: evaluate/per_viewer.parquet.
        seed: the run's.
        systems: the first of them that ranked.
    """
    valid = pl.scan_parquet(per_viewer).filter(pl.col("purpose") == "valid").collect()
    system = next(name for name in systems if name in valid["row"])
    rows = valid.filter(pl.col("row") == system).select("user_id", METRIC)
    return rows.filter(judges(rows["user_id"], seed)).sort("user_id")


def decide_promotion(
    new: pl.DataFrame,
    champion: pl.DataFrame | None,
    *,
    margin: float,
    confidence: float,
    resamples: int,
    seed: int,
    baselines: Sequence[tuple[str, pl.DataFrame]] = (),
) -> PromotionDecision:
    """Promote when the new adapter is not worse than the champion by ``margin`` or more; without one, than no baseline.

    Args:
        new, champion: ``user_id`` and ``ndcg_at_5``, each user once with the mean over its cutoffs; only users in
            both are compared.
        margin: how much worse than the champion the mean may be.
        confidence: of the one-sided bound.
        resamples, seed: of the bootstrap.
        baselines: what the first adapter must not be clearly worse than: a name and a frame like ``new``.

    Returns:
        A refusal, with the reason, also when fewer than two users are in both.
    """
    if champion is None:
        return _decide_first(new, baselines, confidence=confidence, resamples=resamples, seed=seed)
    both = new.join(champion, on="user_id", suffix="_champion", validate="1:1").sort("user_id")
    if both.height < 2:
        reason = f"only {both.height} users were ranked by both; at least 2 are needed to compare"
        return PromotionDecision(False, reason, None, None, both.height)
    gain_U = (both[METRIC] - both[f"{METRIC}_champion"]).to_numpy()
    interval = mean_interval(gain_U, confidence=confidence, resamples=resamples, seed=seed)
    assert interval.lower_bound is not None
    promote = interval.lower_bound > -margin
    verdict = "above" if promote else "not above"
    reason = (
        f"{METRIC} differs from the champion's by {interval.value:+.4f} over {both.height} users; the one-sided "
        f"{confidence:.0%} bound {interval.lower_bound:+.4f} is {verdict} the allowed {-margin:+.4f}"
    )
    return PromotionDecision(promote, reason, interval.value, interval.lower_bound, both.height)


def _decide_first(
    first: pl.DataFrame,
    baselines: Sequence[tuple[str, pl.DataFrame]],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> PromotionDecision:
    """Refuse the first adapter when a baseline is better on the same users, at the one-sided bound."""

    def refuse(reason: str) -> PromotionDecision:
        return PromotionDecision(False, f"there is no champion yet, and {reason}", None, None, first.height)

    for name, baseline in baselines:
        both = first.join(baseline, on="user_id", suffix="_baseline", validate="1:1").sort("user_id")
        if both.height < 2:
            return refuse(f"only {both.height} users were ranked by it and by {name}; at least 2 are needed to compare")
        loss_U = (both[f"{METRIC}_baseline"] - both[METRIC]).to_numpy()
        interval = mean_interval(loss_U, confidence=confidence, resamples=resamples, seed=seed)
        assert interval.lower_bound is not None
        if interval.lower_bound > 0:  # the upper bound of the difference, with its sign turned
            return refuse(
                f"this adapter is worse than {name}: {METRIC} differs by {-interval.value:+.4f} over {both.height} "
                f"users, and the one-sided {confidence:.0%} bound {-interval.lower_bound:+.4f} is below 0"
            )
    return PromotionDecision(True, "there is no champion yet", None, None, first.height)
