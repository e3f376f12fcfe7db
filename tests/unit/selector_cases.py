"""Made-up logs: contexts with triples, a known reward of each, and choices by known probabilities."""

from __future__ import annotations

import numpy as np

from tripletune.retrieve.triple_features import FEATURES
from tripletune.selector.logged import Logged

RELATIONS = ("relation actor", "relation genre")
NAMES = (*FEATURES, *RELATIONS)
NUM_TRIPLES = 4


def make_log(
    num: int = 3000,
    *,
    useful: str = "share of likes",
    noise: float = 0.2,
    biased: bool = False,
    explored: float = 0.2,
    seed: int = 0,
) -> tuple[Logged, np.ndarray]:
    """A log, and the expected reward of each row.

    Args:
        num: facts, of ``num / 3`` users.
        useful: the feature that a fact's reward is.
        noise: of the rewards.
        biased: the triple of the highest personal score is shown, but for the explored ones; else all are drawn.
        explored: share drawn at random, where biased.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    features_TF = rng.normal(size=(num * NUM_TRIPLES, len(NAMES)))
    relation_T = rng.integers(0, len(RELATIONS), len(features_TF))
    features_TF[:, len(FEATURES) :] = np.eye(len(RELATIONS))[relation_T]
    expected_T = features_TF[:, NAMES.index(useful)].copy()
    start_L = np.arange(num) * NUM_TRIPLES
    drawn_L = start_L + rng.integers(0, NUM_TRIPLES, num)
    personal_T = features_TF[:, 0] + features_TF[:, 1]
    best_L = start_L + personal_T.reshape(num, NUM_TRIPLES).argmax(axis=1)
    is_drawn_L = rng.random(num) < explored if biased else np.ones(num, dtype=bool)
    taken_L = np.where(is_drawn_L, drawn_L, best_L)
    share = explored if biased else 1.0
    logged = Logged(
        names=NAMES,
        features_TF=features_TF,
        count_L=np.full(num, NUM_TRIPLES),
        taken_L=taken_L,
        reward_L=expected_T[taken_L] + rng.normal(0, noise, num),
        propensity_L=share / NUM_TRIPLES + (1 - share) * (taken_L == best_L),
        share_L=np.ones(num),
        user_L=np.arange(num) // 3,
    )
    return logged, expected_T
