# Shape letters in this file: L logged facts, T rows of fact and triple of its film, F features, D columns of a design
"""Two ways to learn a score of triples from logged facts: regression of the reward, and REINFORCE with a baseline.

Both weigh each fact by the inverse of its propensity, so that what was shown seldom counts as much as what was shown
often, and both see only differences between triples of one film. Sums are taken in a fixed order (``einsum``), in
float64: the same log gives the same bytes on any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from tripletune.selector.logged import Doubles, Logged

STEPS = 100
"""Iterations of L-BFGS at most, each over the whole log."""
_FLAT = 1e-12


@dataclass(frozen=True, slots=True)
class Scale:
    """Features relative to their mean over the film's triples, in standard deviations."""

    deviation_F: Doubles
    """Of the features within films; a feature that is the same for all triples of each film has 1, and stays 0."""

    @classmethod
    def of(cls, logged: Logged) -> Scale:
        """Standard deviations over all rows of a log."""
        centred_TF = logged.features_TF - _means(logged)[logged.fact_T]
        deviation_F = np.sqrt((centred_TF**2).mean(axis=0))
        return cls(np.where(deviation_F > _FLAT, deviation_F, 1.0))

    def centred(self, logged: Logged) -> Doubles:
        """(T, F)."""
        centred_TF: Doubles = (logged.features_TF - _means(logged)[logged.fact_T]) / self.deviation_F
        return centred_TF

    def contexts(self, logged: Logged) -> Doubles:
        """One, and the films' means, (L, 1 + F): what a reward may depend on whatever triple is shown."""
        return np.concatenate([np.ones((len(logged), 1)), _means(logged) / self.deviation_F], axis=1)


def _means(logged: Logged) -> Doubles:
    sums_LF: Doubles = np.add.reduceat(logged.features_TF, logged.starts_L, axis=0)
    means_LF: Doubles = sums_LF / logged.count_L[:, None]
    return means_LF


@dataclass(frozen=True, slots=True)
class RewardModel:
    """Expected reward of any triple: a part of the film alone, and one of the triple."""

    scale: Scale
    context_D: Doubles
    weight_F: Doubles
    """By feature in standard deviations."""

    def predict(self, logged: Logged) -> Doubles:
        """Nats, of each row, (T,)."""
        context_L: Doubles = np.einsum("ld,d->l", self.scale.contexts(logged), self.context_D)
        of_triple_T: Doubles = np.einsum("tf,f->t", self.scale.centred(logged), self.weight_F)
        context_T: Doubles = context_L[logged.fact_T]
        return context_T + of_triple_T

    @property
    def raw_weight_F(self) -> Doubles:
        """Weights by feature as it is; a film's mean drops out of its choice."""
        return self.weight_F / self.scale.deviation_F


def fit_rewards(logged: Logged, *, ridge: float, clip: float) -> RewardModel:
    """Ridge regression of the reward, weighted by inverse propensity.

    Args:
        logged: at least one fact.
        ridge: L2 penalty, in facts: that many pull each weight to 0.
        clip: the highest inverse propensity weight, relative to a draw from the film's triples.
    """
    scale = Scale.of(logged)
    design_LD = np.concatenate([scale.contexts(logged), scale.centred(logged)[logged.taken_L]], axis=1)
    solved_D = _ridge(design_LD, logged.reward_L, weights(logged, clip), ridge)
    num = 1 + len(logged.names)
    return RewardModel(scale, solved_D[:num], solved_D[num:])


def weights(logged: Logged, clip: float) -> Doubles:
    """Inverse propensity weight of each fact, (L,), clipped, over the probability that it was probed; mean 1."""
    weight_L = np.minimum(logged.uniform_weight_L, clip) / logged.share_L
    normalised_L: Doubles = weight_L / weight_L.mean()
    return normalised_L


def _ridge(design_LD: Doubles, reward_L: Doubles, weight_L: Doubles, ridge: float) -> Doubles:
    """Weighted least squares with a penalty on all columns but the first, which is one."""
    penalty_D = np.full(design_LD.shape[1], ridge)
    penalty_D[0] = _FLAT
    gram_DD = np.einsum("ld,l,le->de", design_LD, weight_L, design_LD, optimize=False) + np.diag(penalty_D)
    solved_D: Doubles = np.linalg.solve(gram_DD, np.einsum("ld,l->d", design_LD, weight_L * reward_L))
    return solved_D


def fit_policy(logged: Logged, *, ridge: float, clip: float) -> Doubles:
    """REINFORCE with a baseline, off-policy: weights of a softmax over each film's triples.

    Maximises the mean of ``pi(shown) / propensity * (reward - baseline)``, by its gradient, the score function weighted
    by the same ratio, over the whole log. The baseline is the reward expected of the film, whatever triple is shown.
    The start is the uniform choice.

    Args:
        logged, ridge, clip: as for ``fit_rewards``.

    Returns:
        Weights by feature as it is, (F,); the choice is the triple of the highest weighted sum.
    """
    scale = Scale.of(logged)
    context_LD, weight_L = scale.contexts(logged), weights(logged, clip)
    baseline_L = np.einsum("ld,d->l", context_LD, _ridge(context_LD, logged.reward_L, weight_L, ridge))
    advantage_L = logged.reward_L - baseline_L
    gain_L = weight_L * logged.count_L * advantage_L / max(float(advantage_L.std()), _FLAT) / len(logged)
    centred_TF, starts_L, fact_T = scale.centred(logged), logged.starts_L, logged.fact_T
    taken_LF = centred_TF[logged.taken_L]

    def loss(weight_F: Doubles) -> tuple[float, Doubles]:
        score_T = np.einsum("tf,f->t", centred_TF, weight_F)
        power_T = np.exp(score_T - np.maximum.reduceat(score_T, starts_L)[fact_T])
        chance_T = power_T / np.add.reduceat(power_T, starts_L)[fact_T]
        pull_L = gain_L * chance_T[logged.taken_L]
        # the score function: the shown triple's features minus those expected under the policy
        expected_F = np.einsum("t,tf->f", pull_L[fact_T] * chance_T, centred_TF)
        gradient_F = np.einsum("l,lf->f", pull_L, taken_LF) - expected_F
        penalty = ridge / len(logged)
        value = pull_L.sum() - penalty / 2 * np.einsum("f,f->", weight_F, weight_F)
        return -float(value), penalty * weight_F - gradient_F

    found = minimize(loss, np.zeros(len(logged.names)), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    raw_F: Doubles = found.x / scale.deviation_F
    return raw_F
