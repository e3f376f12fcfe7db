# Shape letters in this file: L logged facts, T rows of fact and triple of its film
"""Reasons to refuse a learned choice: a log that says too little, a collapse, and too little worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def refuse_worth(value: Mapping[str, Any]) -> str:
    """Why the learned choice is not worth using; empty: it is.

    It must be shown to be worth more than a draw (else the log holds no more than noise), and must not be shown to be
    worth less than ``personal``. That it is worth more than ``personal`` need not be shown: with a log of usual size
    the interval is wider than what there is to gain.

    Args:
        value: of the learner, of ``cross_fit``.
    """
    low, high = value["minus_random_low"], value["minus_personal_high"]
    if low is None or low <= 0:
        return (
            f"to users it was not learned from it is not shown to be worth more than a draw: "
            f"{value['minus_random']:+.4f} nats a fact, from {_signed(low)}"
        )
    if high < 0:
        return (
            f"to users it was not learned from it is worth less than personal: {value['minus_personal']:+.4f} nats a "
            f"fact, up to {high:+.4f}"
        )
    return ""


def say_choice(facts: Mapping[str, Any]) -> str:
    """A sentence on how triples are chosen, from the facts of the stage's manifest."""
    if facts["refused"]:
        return f"Triples are chosen as under 'personal'; the learned choice is not used: {facts['refused']}."
    logged, entropies = facts["logged"], facts["entropy"]
    return (
        f"Triples are chosen by what {facts['learner']} learned from {logged['facts']:,} facts shown to "
        f"{logged['users']:,} training users; "
        f"entropy of their relations {entropies['learned']:.2f} nats (personal {entropies['personal']:.2f})."
    )


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4f}"
