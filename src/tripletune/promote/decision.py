"""Decision whether a new adapter takes the champion's place, from values per user alone.

Every comparison is paired by user and has a one-sided bound. An adapter goes in when it is *shown* not to be worse than
each reference by a share of the reference's value: where the users cannot tell, it stays out. Not "better than": a
model that is as good and trained on fresher ratings should go in. Only the title of best version demands superiority,
since it is what later adapters are held to: with a title by value alone, or by non-inferiority, quality could walk
downhill by less than the margin each time (benchmarks/gate.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from tripletune.evaluate.metrics import PROMOTION_METRIC as METRIC
from tripletune.evaluate.per_user import scan_per_user, served_row
from tripletune.evaluate.significance import FloatArray, bootstrap_means
from tripletune.judges import judges

CHAMPION, BEST, EARLIER, RETRIEVER, UNTUNED = "champion", "best", "earlier", "retriever", "untuned"
"""Names of the references: the version that is served, the best one, the champion of some days ago, the retriever's
own order and the untuned model."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Settings of the decision; ``PromoteConfig`` has their meaning."""

    relative_margin: float
    confidence: float
    min_users: int
    resamples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Reference:
    """What a new adapter is compared with."""

    name: str
    scores: pl.DataFrame | None
    """``user_id`` and ``ndcg_at_5``, each user once; None: there is nothing to compare with, and ``why`` says why."""
    why: str = ""
    blocks: bool = False
    """Without scores: whether nothing may pass it, as where its files did not arrive."""
    other_contract: bool = False
    """Without scores: whether neither this run's prompts nor prompts of its own contract could be ranked."""
    own_contract: bool = False
    """Whether it ranked prompts of its own contract, which is not this run's."""
    version: str = ""
    """In the registry; empty: it is no version."""
    warm_runs: int = 0
    """If the new adapter is fresh and the champion is not: trainings of the champion's chain after its fresh one."""
    sampled: bool = False
    """Whether it ranked a part of the users by a setting; too few of them skip the comparison instead of failing it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison with all its numbers, which are None where it was skipped or could not be made."""

    name: str
    version: str
    verdict: Literal["passed", "failed", "skipped"]
    reason: str
    value: float | None = None
    """Mean of the reference over the users."""
    difference: float | None = None
    """New adapter minus reference."""
    lower_bound: float | None = None
    upper_bound: float | None = None
    """One-sided bounds of the difference, each at the rule's confidence."""
    allowed: float | None = None
    """What the lower bound may not be below."""
    num_viewers: int = 0
    is_better: bool = False
    """Whether the new adapter is shown to be better: the lower bound is above 0."""
    reversed_burden: bool = False
    """Whether it passes unless the reference is clearly better: a fresh adapter against a warm chain."""
    own_contract: bool = False
    """Whether the reference ranked prompts of its own contract."""


@dataclass(frozen=True, slots=True)
class PromotionDecision:
    """The decision and what it rests on."""

    promote: bool
    reason: str
    difference: float | None = None
    """From the champion, as ``lower_bound``; both None where it was not compared with."""
    lower_bound: float | None = None
    num_viewers: int = 0
    value: float | None = None
    """Mean of the new adapter over the users who judge."""
    is_best: bool = False
    """Whether the new version takes the title of best version."""
    kept_against_fresh: bool = False
    """Whether a champion that started warm was clearly better than this fresh adapter."""
    comparisons: tuple[Comparison, ...] = ()


def promotion_scores(evaluate: Path, seed: int, row: str = "") -> pl.DataFrame:
    """What the decision compares: ``user_id, ndcg_at_5`` of a system on valid examples.

    Valid and not test: a champion chosen by its test score would make that score a biased one. And of the users in
    valid only those who judge (``tripletune.judges``): the others selected the weight between both scores.

    Args:
        evaluate: folder of the finished stage.
        seed: the run's.
        row: of its tables; empty: the one that the run serves.
    """
    valid = scan_per_user(evaluate).filter(pl.col("purpose") == "valid").collect()
    rows = valid.filter(pl.col("row") == (row or served_row(valid["row"].unique().to_list()))).select("user_id", METRIC)
    return rows.filter(judges(rows["user_id"], seed)).sort("user_id")


def decide_promotion(new: pl.DataFrame, references: Sequence[Reference], rule: Rule) -> PromotionDecision:
    """Promote when no comparison fails; a skipped one does not, and stands in the decision with its reason.

    Args:
        new: ``user_id`` and ``ndcg_at_5`` of the new adapter, each user once with the mean over its cutoffs.
        references: what it must not be worse than; in each comparison only users in both count.
        rule: margin, confidence, the least number of users and the bootstrap.

    Returns:
        A refusal, with the reason, also when fewer than ``min_users`` judge or a value is not finite.
    """
    infinite = int((~new[METRIC].is_finite().fill_null(False)).sum())
    if infinite:
        reason = f"{METRIC} on valid is not finite for {infinite} of {new.height} users; rank and evaluate again"
        return PromotionDecision(False, reason, num_viewers=new.height)
    if new.height < rule.min_users:
        reason = (
            f"only {new.height} users of valid judge, and promote.min_users is {rule.min_users}; raise "
            "rank.max_viewers, or lower it"
        )
        return PromotionDecision(False, reason, num_viewers=new.height)
    made = tuple(_compare(new, reference, rule) for reference in references)
    failed = [one for one in made if one.verdict == "failed"]
    champion = next((one for one in made if one.name == CHAMPION), None)
    best = next((one for one in made if one.name == BEST), None)
    return PromotionDecision(
        promote=not failed,
        reason="; ".join(one.reason for one in failed) or _passed(made),
        difference=champion.difference if champion else None,
        lower_bound=champion.lower_bound if champion else None,
        num_viewers=champion.num_viewers if champion and champion.difference is not None else new.height,
        value=_mean(new),
        is_best=not failed and (best is None or best.verdict == "skipped" or best.is_better),
        kept_against_fresh=bool(
            champion and champion.reversed_burden and champion.verdict == "failed" and champion.difference is not None
        ),
        comparisons=made,
    )


def _mean(frame: pl.DataFrame) -> float:
    return float(frame[METRIC].to_numpy().mean())


def _passed(made: Sequence[Comparison]) -> str:
    passed = ", ".join(one.name for one in made if one.verdict == "passed")
    skipped = "".join(f"; skipped {one.name}: {one.reason}" for one in made if one.verdict == "skipped")
    return f"not worse than {passed or 'anything'}{skipped}"


def _compare(new: pl.DataFrame, reference: Reference, rule: Rule) -> Comparison:
    name, version = reference.name, reference.version
    if reference.scores is None:
        return Comparison(name, version, "failed" if reference.blocks else "skipped", reference.why)
    both = new.join(reference.scores, on="user_id", suffix="_reference", validate="1:1").sort("user_id")
    if both.height < max(2, rule.min_users):
        reason = f"only {both.height} users were ranked by both this adapter and {_named(reference)}, and "
        reason += f"promote.min_users is {rule.min_users}"
        return Comparison(name, version, "skipped" if reference.sampled else "failed", reason, num_viewers=both.height)
    theirs_U = both[f"{METRIC}_reference"].to_numpy()
    if not np.isfinite(theirs_U).all():
        reason = f"{METRIC} of {_named(reference)} is not finite; rank and evaluate again"
        return Comparison(name, version, "failed", reason, num_viewers=both.height)
    return _measured(reference, both[METRIC].to_numpy() - theirs_U, float(theirs_U.mean()), rule)


def _measured(reference: Reference, gain_U: FloatArray, value: float, rule: Rule) -> Comparison:
    error = 1.0 - rule.confidence
    means_R = bootstrap_means(gain_U[:, None], resamples=rule.resamples, seed=rule.seed)[:, 0]
    lower, upper = (float(bound) for bound in np.quantile(means_R, [error, 1.0 - error]))
    allowed = -rule.relative_margin * value
    not_worse, chain = lower >= allowed, reference.warm_runs > 0
    passes = not_worse or (chain and upper >= 0)
    difference = float(gain_U.mean())
    return Comparison(
        reference.name,
        reference.version,
        "passed" if passes else "failed",
        _reason(reference, (difference, lower, upper, allowed), len(gain_U), rule),
        value,
        difference,
        lower,
        upper,
        allowed,
        len(gain_U),
        is_better=lower > 0,
        reversed_burden=chain,
        own_contract=reference.own_contract,
    )


def _reason(reference: Reference, numbers: tuple[float, float, float, float], users: int, rule: Rule) -> str:
    difference, lower, upper, allowed = numbers
    side = "not below" if lower >= allowed else "below"
    text = (
        f"{METRIC} differs from that of {_named(reference)} by {difference:+.4f} over {users} users; the one-sided "
        f"{rule.confidence:.0%} bound {lower:+.4f} is {side} the allowed {allowed:+.4f}"
    )
    if reference.warm_runs and lower < allowed:
        verdict = "below 0, so the chain goes on" if upper < 0 else "not below 0, so the chain ends"
        text += f"; this adapter is fresh and the champion has {reference.warm_runs} warm trainings behind it: "
        text += f"the upper bound {upper:+.4f} is {verdict}"
    return text


_WORDS = {
    CHAMPION: "the champion",
    BEST: "the best version",
    EARLIER: "an earlier champion",
    RETRIEVER: "the retriever's order",
    UNTUNED: "the untuned model",
}


def _named(reference: Reference) -> str:
    words = _WORDS.get(reference.name, reference.name)
    version = f" (version {reference.version})" if reference.version else ""
    return f"{words}{version}{', each on prompts of its own contract,' if reference.own_contract else ''}"
