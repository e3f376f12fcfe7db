# Shape letters in this file: U queries, K candidates, M films of the catalogue, F films of the hint
"""Hint 3: the candidates that most users liked, in the rows that the fit was trained on: fit a has no answers."""

from __future__ import annotations

import numpy as np

from tripletune.models.serving.topk import Ints
from tripletune.retrieve.further_hints import HintInputs

NUM_FILMS = 3


def films(inputs: HintInputs) -> Ints:
    """Columns (U, F) of the most liked candidates, most liked first, ties by the lower column; -1 without a like."""
    films_UK, like_counts_M = inputs.candidates_UK, inputs.neighbours.like_counts_M
    counts_UK = np.where(films_UK >= 0, like_counts_M[films_UK], 0)
    order_UF = np.lexsort((films_UK, -counts_UK), axis=1)[:, :NUM_FILMS]
    films_UF = np.take_along_axis(films_UK, order_UF, axis=1)
    return np.where(np.take_along_axis(counts_UK, order_UF, axis=1) > 0, films_UF, -1)
