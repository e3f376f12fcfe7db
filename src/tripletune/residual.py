"""The language model's scores of candidates and the retriever's, added up: what training fits is what ranking sorts by.

    score(c) = weight * (logit(c) - mean of the candidates' logits) + prior(place of c in the retriever's order)

``prior`` is the log-probability that a like stands at that place, from training queries. The language model then only
has to learn what the retriever does not know, as in boosting (Friedman, Annals of Statistics 2001), and a weight of 0
is the retriever's own order.
"""
# Shape letters in this file: E examples, C places of a list of candidates

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, minimize_scalar

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

HEAVIEST = 4.0
"""Upper bound of the weight; that of a model trained for its own scores is 1."""
_OFFSETS = (0.01, 1e3)
_SLOPES = (1e-3, 50.0)


def calibrate_prior(places: Sequence[Sequence[int]], num_candidates: int) -> Floats:
    """Log-probability of a like at each place of the retriever's order; shape (C,), falling, summing to 1.

    Zipf and Mandelbrot's law, ``(place + offset) ** -slope``, fitted by maximum likelihood: two numbers, so that a few
    hundred queries are enough, and strictly falling, so that the retriever's order is kept.

    Args:
        places: places of the likes among the candidates, from 0, of each training query; those of one query count as
            one like together.
        num_candidates: C, of the longest list.
    """
    share_C = np.zeros(num_candidates)
    for hits in places:
        np.add.at(share_C, list(hits), 1 / len(hits))
    place_C = np.arange(1, num_candidates + 1, dtype=np.float64)

    def log_prior(parameters: Floats) -> Floats:
        slope, offset = np.exp(parameters)
        energy_C = -slope * np.log(place_C + offset)
        return np.asarray(energy_C - np.logaddexp.reduce(energy_C))

    if not share_C.sum():
        return log_prior(np.zeros(2))
    bounds = [(math.log(low), math.log(high)) for low, high in (_SLOPES, _OFFSETS)]

    def loss(parameters: Floats) -> float:
        return -float(share_C @ log_prior(parameters) / share_C.sum())

    found = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=bounds)
    return log_prior(found.x)


def centre(logits_EC: Floats, shown_EC: Flags) -> Floats:
    """Logits minus the mean of each example's own; 0 where no candidate is shown."""
    counts_E1 = shown_EC.sum(axis=1, keepdims=True)
    kept_EC = np.where(shown_EC, logits_EC, 0.0)
    return np.where(shown_EC, kept_EC - kept_EC.sum(axis=1, keepdims=True) / np.maximum(counts_E1, 1), 0.0)


def combine(logits_EC: Floats, prior_EC: Floats, shown_EC: Flags, weight: float) -> Floats:
    """Final scores; minus infinity where no candidate is shown."""
    return np.where(shown_EC, weight * centre(logits_EC, shown_EC) + prior_EC, -np.inf)


def mean_loss(logits_EC: Floats, prior_EC: Floats, target_EC: Floats, shown_EC: Flags, weight: float) -> float:
    """Mean cross-entropy of the targets under a softmax over the final scores, in nats."""
    score_EC = combine(logits_EC, prior_EC, shown_EC, weight)
    log_EC = np.where(shown_EC, score_EC, 0.0) - np.logaddexp.reduce(score_EC, axis=1, keepdims=True)
    return -float((target_EC * log_EC).sum() / len(logits_EC))


def fit_weight(logits_EC: Floats, prior_EC: Floats, target_EC: Floats, shown_EC: Flags) -> float:
    """The weight from 0 to ``HEAVIEST`` under which the targets are likeliest; the likelihood has one maximum.

    Args:
        logits_EC, prior_EC: of each candidate.
        target_EC: share of the target, summing to 1 over an example.
        shown_EC: which places hold a candidate.
    """
    if not len(logits_EC):
        return 0.0

    def loss(weight: float) -> float:
        return mean_loss(logits_EC, prior_EC, target_EC, shown_EC, weight)

    best = float(minimize_scalar(loss, bounds=(0.0, HEAVIEST), method="bounded", options={"xatol": 1e-4}).x)
    return round(best, 4) if loss(best) < loss(0.0) else 0.0
