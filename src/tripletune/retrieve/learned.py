"""The learned choice of a film's triples: a weighted sum of ``triple_features``, read from the stage ``selector``.

A film's triple with the highest sum is shown. The weights come from the changes of the right answers' log-probability
that an earlier run measured without each fact (``tripletune.selector``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tripletune.errors import InputError
from tripletune.models.serving.catalogue import Likes
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.triple_features import FEATURES, RELATION, TripleFeatures
from tripletune.retrieve.triples import Doubles

NAME = "selector.json"
"""File of the stage ``selector``."""


@dataclass(frozen=True, slots=True)
class Selector:
    """Scores of triples for ``choose_triples``; one fit's features, the weights of all."""

    features: TripleFeatures
    weights: Mapping[str, float]
    """By the feature's name; a relation without a weight counts as 0."""

    def score(self, likes: Likes, num_users: int, user_P: Ints, movie_P: Ints, pair_T: Ints, triple_T: Ints) -> Doubles:
        """The weighted sum of each row, (T,); see ``TripleFeatures.columns``."""
        weight_C = np.array([self.weights.get(f"{RELATION}{name}", 0.0) for name in self.features.relations.names_C])
        score_T: Doubles = weight_C[self.features.relation_X[triple_T]]
        for name, value_T in self.features.columns(likes, num_users, user_P, movie_P, pair_T, triple_T).items():
            score_T = score_T + self.weights[name] * value_T
        return score_T


def read_weights(folder: Path) -> dict[str, float] | None:
    """Weights by feature of a finished stage ``selector``; None where it was refused, so that ``personal`` is used.

    Raises:
        InputError: the file is missing or damaged, or lacks a feature.
    """
    path = folder / NAME
    try:
        stored = json.loads(path.read_text("utf-8"))
        if stored["refused"]:
            return None
        weights = {str(name): float(value) for name, value in stored["weights"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} must hold 'refused' and 'weights' by feature ({error}); run selector again") from None
    missing = [name for name in FEATURES if not np.isfinite(weights.get(name, np.nan))]
    if missing:
        raise InputError(f"{path} has no finite weight of {missing[0]!r}; run selector again")
    return weights
