# Shape letters in this file: L logged facts, T rows of fact and triple of its film
"""Reasons to refuse a learned choice: a log that says too little, a collapse, and a worth below ``personal``'s."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tripletune.config import SelectorConfig
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.triple_features import FEATURES, RELATION
from tripletune.selector.logged import Logged
from tripletune.selector.offpolicy import propensity_error

_TOLERANCE, _ERRORS = 0.1, 4.0
"""How far the mean of a draw's weights may be from one, and in standard errors in addition."""


def refuse_log(logged: Logged, settings: SelectorConfig) -> str:
    """Why nothing can be learned from a log; empty: something can."""
    if len(logged) < settings.min_facts:
        return f"of {len(logged):,} facts there was a choice, fewer than selector.min_facts = {settings.min_facts:,}"
    if explored_share(logged) == 0:
        return "the log's choices were not randomised; set retrieve.explore_triples above 0, such as 0.1"
    mean, error = propensity_error(logged)
    if abs(mean - 1.0) > _TOLERANCE + _ERRORS * error:
        return f"the log's propensities are not those of its choices: the weights of a draw have mean {mean:.2f}, not 1"
    return ""


def explored_share(logged: Logged) -> float:
    """Share of logged facts that were not certain to be shown."""
    return float((logged.propensity_L < 1.0).mean()) if len(logged) else 0.0


def relation_shares(logged: Logged, row_L: Ints) -> dict[str, float]:
    """Share of each relation among some choices, by name.

    Args:
        logged: whose films are chosen for.
        row_L: the triple of each, as ``Logged.best`` gives it.
    """
    names = logged.names[len(FEATURES) :]
    share_C = logged.features_TF[row_L, len(FEATURES) :].mean(axis=0)
    return {name.removeprefix(RELATION): float(share) for name, share in zip(names, share_C, strict=True)}


def entropy(shares: Mapping[str, float]) -> float:
    """Of a distribution, in nats."""
    share_C = np.array([share for share in shares.values() if share > 0])
    return float(-(share_C * np.log(share_C)).sum())


def refuse_collapse(learned: Mapping[str, float], personal: Mapping[str, float], settings: SelectorConfig) -> str:
    """Why the learned choice has collapsed to few relations; empty: it has not.

    Args:
        learned, personal: shares of the relations among the choices for the same films.
    """
    mine, theirs = entropy(learned), entropy(personal)
    if mine < settings.min_entropy * theirs:
        return (
            f"it collapsed: the entropy of its relations is {mine:.2f} nats, below selector.min_entropy = "
            f"{settings.min_entropy:g} of personal's {theirs:.2f}"
        )
    top = max(learned, key=lambda name: learned[name])
    if learned[top] > max(settings.max_relation_share, personal[top]):
        return (
            f"it collapsed: {learned[top]:.0%} of its choices are of the relation {top}, above "
            f"selector.max_relation_share = {settings.max_relation_share:g}"
        )
    return ""
