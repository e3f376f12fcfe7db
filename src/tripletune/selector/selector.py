# Shape letters in this file: L logged facts, T rows of fact and triple of its film, F features
"""The stage ``selector``: learn which fact of a film to show from an earlier run's log, and write ``selector.json``.

Users are divided into folds; both learners and the reward model that judges them are fitted to the other folds and
judged on this one. The better learner is then fitted to all. Where the log says too little, or the result has
collapsed, is not shown to be worth more than a draw or is shown to be worth less than ``personal``, it is refused with
the reason, and ``personal`` is used.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tripletune.config import SelectorConfig
from tripletune.evaluate.significance import mean_interval
from tripletune.models.rgat.serve import load_rgat
from tripletune.retrieve.histories import find_history, read_fit_likes, read_rows
from tripletune.retrieve.learned import NAME
from tripletune.retrieve.profiles import RelationTable
from tripletune.retrieve.triple_features import TripleFeatures
from tripletune.retrieve.triples import TripleTable, read_triples
from tripletune.schemas.query import FIT_OF, QUERY_KEY
from tripletune.selector.guards import (
    entropy,
    explored_share,
    refuse_collapse,
    refuse_log,
    refuse_worth,
    relation_shares,
)
from tripletune.selector.learn import fit_policy, fit_rewards
from tripletune.selector.log import Feedback, RunLog, read_log
from tripletune.selector.logged import Doubles, Logged, gather
from tripletune.selector.offpolicy import certain, estimate, propensity_error, uniform
from tripletune.stable_hash import mix
from tripletune.store.files import write_json
from tripletune.store.paths import Facts
from tripletune.store.shards import split_files

FOLDS = 3
LEARNERS = ("regression", "reinforce")
NO_LOG = "there is no log yet: no completed run of this dataset has probed training prompts"
_FOLD = 27 << 40
"""Added to the run's seed for the folds."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """Bootstrap over users."""

    confidence: float
    resamples: int
    seed: int


def learn_selector(
    run: RunLog | None,
    split: Path,
    knowledge: Path,
    rgat: Path,
    lightgcn: Path,
    out: Path,
    settings: SelectorConfig,
    judging: Judging,
) -> Facts:
    """Learn a choice and write ``selector.json``.

    Args:
        run: that the log is of; None: there is none yet.
        split, knowledge, rgat, lightgcn: of the present run: features are those that retrieve will compute.
        out: work folder.
        settings: section ``[selector]``.
        judging: seed of the run, and of the intervals.

    Returns:
        What the file holds but the weights: ``refused`` (empty: it is used), ``learner``, what was logged, the values
        of all choices off-policy, and relations chosen.

    Raises:
        InputError: the log is damaged or holds other than training questions; see ``log.read_log``.
    """
    if run is None:
        return _write(out, {"refused": NO_LOG}, {})
    feedback = read_log(run, split)
    logged = _gather(feedback, split, knowledge, rgat, lightgcn, judging.seed)
    facts: Facts = {"refused": refuse_log(logged, settings), "logged": _describe(logged, feedback)}
    if facts["refused"]:
        return _write(out, facts, {})
    values = cross_fit(logged, settings, judging)
    by_worth = sorted(LEARNERS, key=lambda name: -values[name]["robust"])
    learner = by_worth[0] if settings.learner == "best" else settings.learner
    weight_F = learn(logged, learner, settings)
    personal_L = logged.best(personal_scores(logged))
    relations = {
        "learned": relation_shares(logged, logged.best(np.einsum("tf,f->t", logged.features_TF, weight_F))),
        "personal": relation_shares(logged, personal_L),
    }
    facts |= {
        "learner": learner,
        "values": values,
        "relations": {name: _rounded(shares) for name, shares in relations.items()},
        "entropy": _rounded({name: entropy(shares) for name, shares in relations.items()}),
        "refused": refuse_collapse(relations["learned"], relations["personal"], settings)
        or refuse_worth(values[learner]),
    }
    return _write(out, facts, dict(zip(logged.names, weight_F.tolist(), strict=True)))


def _gather(feedback: Feedback, split: Path, knowledge: Path, rgat: Path, lightgcn: Path, seed: int) -> Logged:
    fit = FIT_OF["train"]
    model = load_rgat(rgat, seed, (fit,))[fit]
    table = TripleTable.build(model, read_triples(knowledge), seed)
    features = TripleFeatures.build(table, model, RelationTable.build(table, model), read_fit_likes(lightgcn, fit))
    users = feedback.facts["user_id"].unique()
    mine = pl.col("user_id").is_in(users.implode())
    rows = read_rows(list(split_files(split).values())).filter(mine).collect()
    return gather(features, feedback.facts, find_history(rows, feedback.facts.select(QUERY_KEY).unique()))


def learn(logged: Logged, learner: str, settings: SelectorConfig) -> Doubles:
    """Weights by feature, (F,), of ``regression`` or ``reinforce``."""
    if learner == "regression":
        return fit_rewards(logged, ridge=settings.ridge, clip=settings.clip).raw_weight_F
    return fit_policy(logged, ridge=settings.ridge, clip=settings.clip)


def personal_scores(logged: Logged) -> Doubles:
    """The score of the mode ``personal`` of each row, (T,)."""
    scores_T: Doubles = logged.column("log attention") + logged.column("match")
    return scores_T


def cross_fit(logged: Logged, settings: SelectorConfig, judging: Judging) -> dict[str, dict[str, Any]]:
    """Off-policy values of both learners, ``personal`` and ``random``, each on users that it was not learned from.

    Returns:
        By choice ``snips`` (None where the log shows none of its facts) and ``robust`` (doubly robust), in nats per
        fact, and for the latter its interval over users and the differences from ``personal`` and ``random`` with
        theirs.
    """
    fold_L = (mix(logged.user_L, judging.seed + _FOLD) % np.uint64(FOLDS)).astype(np.int64)
    names = (*LEARNERS, "personal", "random")
    robust = {name: np.zeros(len(logged)) for name in names}
    snips: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    for fold in range(FOLDS):
        is_mine_L = fold_L == fold
        if not is_mine_L.any() or is_mine_L.all():
            continue
        others, mine = logged.only(~is_mine_L), logged.only(is_mine_L)
        model_T = fit_rewards(others, ridge=settings.ridge, clip=settings.clip).predict(mine)
        scores = {name: np.einsum("tf,f->t", mine.features_TF, learn(others, name, settings)) for name in LEARNERS}
        chances = {name: certain(mine, score_T) for name, score_T in scores.items()}
        chances |= {"personal": certain(mine, personal_scores(mine)), "random": uniform(mine)}
        for name, chance_T in chances.items():
            value = estimate(mine, chance_T, model_T, clip=settings.clip)
            robust[name][is_mine_L] = value.robust_L
            snips[name].append((value.snips, len(mine)))
    return {name: _valued(logged, name, robust, snips[name], judging) for name in names}


def _valued(
    logged: Logged, name: str, robust: dict[str, Doubles], snips: list[tuple[float, int]], judging: Judging
) -> dict[str, Any]:
    def over_users(value_L: Doubles) -> Any:
        frame = pl.DataFrame({"user": logged.user_L, "value": value_L / logged.share_L, "weight": 1 / logged.share_L})
        means = frame.group_by("user").agg(pl.col("value", "weight").sum()).sort("user")
        of_user_U = (means["value"] / means["weight"]).to_numpy()
        return mean_interval(of_user_U, confidence=judging.confidence, resamples=judging.resamples, seed=judging.seed)

    whole = over_users(robust[name])
    less = {other: over_users(robust[name] - robust[other]) for other in ("personal", "random")}
    agreeing = [(value, number) for value, number in snips if not np.isnan(value)]  # NaN: no fact of it was shown
    total = sum(number for _, number in agreeing)
    return _rounded(
        {
            "snips": sum(value * number for value, number in agreeing) / total if total else None,
            "robust": whole.value,
            "low": whole.low,
            "high": whole.high,
            **{f"minus_{other}": found.value for other, found in less.items()},
            **{f"minus_{other}_low": found.low for other, found in less.items()},
            **{f"minus_{other}_high": found.high for other, found in less.items()},
        }
    )


def _describe(logged: Logged, feedback: Feedback) -> Facts:
    mean, error = propensity_error(logged) if len(logged) else (0.0, 0.0)
    return {
        "facts": len(logged),
        "users": len(np.unique(logged.user_L)),
        "not_certain": round(explored_share(logged), 6),
        "weight_of_a_draw": round(mean, 6),
        "weight_of_a_draw_error": round(error, 6),
        "dropped": {**feedback.dropped, "without an alternative": len(feedback.facts) - len(logged)},
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value is None else round(float(value), 6) for name, value in values.items()}


def _write(out: Path, facts: Facts, weights: dict[str, float]) -> Facts:
    """Write the file; nine digits of a weight, as the last ones may differ between processors."""
    write_json(out / NAME, {**facts, "weights": {name: float(f"{value:.9g}") for name, value in weights.items()}})
    if facts["refused"]:
        log.warning("selector: triples are chosen as under 'personal': %s", facts["refused"])
    return facts
