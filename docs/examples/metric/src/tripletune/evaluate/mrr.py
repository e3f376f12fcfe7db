"""Mean reciprocal rank (Voorhees, TREC-8 1999), cut at K."""

# Shape letters in this file: U users (one list each), K positions of a list that are looked at

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def mrr(hit_UK: npt.NDArray[np.bool_], num_relevant_U: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """1 / rank of the first relevant film among the first K, rank from 1; 0 where none is."""
    rank_K = np.arange(1, hit_UK.shape[1] + 1)
    best_U = np.where(hit_UK, 1.0 / rank_K, 0.0).max(axis=1)
    return np.where(num_relevant_U > 0, best_U, np.nan)
