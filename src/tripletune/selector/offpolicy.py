# Shape letters in this file: L logged facts, T rows of fact and triple of its film
"""What other choices would have been worth, estimated from logged facts and the probabilities of the log's choices.

``SNIPS`` is the mean reward weighted by the ratio of probabilities, over the sum of the weights (Swaminathan &
Joachims, NeurIPS 2015). ``doubly robust`` (Dudik et al., ICML 2011) adds to a reward model's value the weighted error
of the model: unbiased where the propensities are right, whatever the model, and of less variance where it fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tripletune.selector.logged import Doubles, Logged


@dataclass(frozen=True, slots=True)
class Value:
    """A policy's worth on a log."""

    snips: float
    """Nats per fact; NaN where the log shows no fact that the policy would."""
    robust_L: Doubles
    """Each fact's share in the doubly robust value, in nats; facts count by ``1 / share``."""


def estimate(logged: Logged, chance_T: Doubles, model_T: Doubles, *, clip: float) -> Value:
    """Worth of a policy.

    Args:
        logged: that neither policy nor model were learned from.
        chance_T: the policy's probability of each triple, summing to one over a film's.
        model_T: rewards that a model expects.
        clip: the highest ratio of probabilities, times the number of the film's triples.
    """
    ratio_L = chance_T[logged.taken_L] / logged.propensity_L
    ratio_L = np.minimum(ratio_L, clip * logged.count_L)
    weight_L = ratio_L / logged.share_L
    total = weight_L.sum()
    expected_L = np.add.reduceat(chance_T * model_T, logged.starts_L)
    robust_L: Doubles = expected_L + ratio_L * (logged.reward_L - model_T[logged.taken_L])
    return Value(float((weight_L * logged.reward_L).sum() / total) if total else float("nan"), robust_L)


def certain(logged: Logged, score_T: Doubles) -> Doubles:
    """Probabilities of the policy that shows the triple of the highest score, (T,)."""
    chance_T = np.zeros(len(score_T))
    chance_T[logged.best(score_T)] = 1.0
    return chance_T


def uniform(logged: Logged) -> Doubles:
    """Probabilities of a draw from each film's triples, (T,)."""
    chance_T: Doubles = np.repeat(1.0 / logged.count_L, logged.count_L)
    return chance_T


def propensity_error(logged: Logged) -> tuple[float, float]:
    """Mean of a draw's weights, which is one where propensities are those of the choices, and its standard error."""
    weight_L = logged.uniform_weight_L
    return float(weight_L.mean()), float(weight_L.std() / np.sqrt(len(weight_L)))
