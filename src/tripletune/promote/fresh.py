"""Guard of warm starts: a fresh adapter against a champion that has been trained on, run by run.

Each warm adapter went in because it was not worse than the one before by the margin, so a chain of them may lose the
margin again and again. Every ``finetune.fresh_every`` runs an adapter is therefore trained from the base model on all
examples, and here the burden of proof is turned round: the fresh one takes over by promotion's usual rule, and also
where that rule cannot tell. The chain goes on only where it is clearly better. With few users, who show little, it
ends.
"""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from tripletune.evaluate.metrics import PROMOTION_METRIC as METRIC
from tripletune.evaluate.significance import mean_interval
from tripletune.promote.decision import PromotionDecision


def decide_against_chain(
    usual: PromotionDecision,
    fresh: pl.DataFrame,
    champion: pl.DataFrame,
    warm_runs: int,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> PromotionDecision:
    """Keep the warm champion only if the one-sided bound of what it is better by is above 0.

    Args:
        usual: what promotion decides of the fresh adapter otherwise.
        fresh, champion: ``user_id`` and ``ndcg_at_5``; only users in both are compared.
        warm_runs: trainings of the champion's chain after its fresh one.
        confidence: of the one-sided bound.
        resamples, seed: of the bootstrap.

    Returns:
        A promotion, or a refusal with ``kept_against_fresh``, with the reason; ``usual`` where it promotes already or
        fewer than two users are in both.
    """
    if usual.promote or usual.num_viewers < 2:
        return usual
    both = fresh.join(champion, on="user_id", suffix="_champion", validate="1:1").sort("user_id")
    lead_U = (both[f"{METRIC}_champion"] - both[METRIC]).to_numpy()
    interval = mean_interval(lead_U, confidence=confidence, resamples=resamples, seed=seed)
    assert interval.lower_bound is not None
    keeps = interval.lower_bound > 0
    verdict = "is above 0, so the chain goes on" if keeps else "is not above 0, so the chain ends"
    reason = (
        f"this adapter is fresh, and the champion of {warm_runs} warm trainings is better by {interval.value:+.4f} "
        f"{METRIC} over {both.height} users; the one-sided {confidence:.0%} bound {interval.lower_bound:+.4f} {verdict}"
    )
    return replace(usual, promote=not keeps, reason=reason, kept_against_fresh=keeps)
