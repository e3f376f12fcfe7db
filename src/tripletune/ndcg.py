"""Normalised discounted cumulative gain: what evaluate reports, promotion compares and finetune keeps adapters by."""

# Shape letters in this file:
#   U queries (one list each), K first positions of a list

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

PROMOTION_CUTOFF = 5
"""Places that count in promotion, and where a training's evaluations are compared."""


def ndcg(hit_UK: BoolArray, num_relevant_U: IntArray) -> FloatArray:
    """Normalised discounted cumulative gain of the first K films, in [0, 1].

    Binary gain, log2 discount, ideal list cut at K (Jarvelin & Kekalainen, TOIS 2002). With one relevant film this is
    1 / log2(rank + 1), rank from 1.
    """
    k = hit_UK.shape[1]
    discount_K = 1.0 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    ideal_by_count = np.concatenate([[np.nan], np.cumsum(discount_K)])  # NaN where nothing is relevant
    # a sum along the row, not a matrix product: its order, and so its last bit, never depends on BLAS threads
    gain_U = np.where(hit_UK, discount_K, 0.0).sum(axis=1)
    ndcg_U: FloatArray = gain_U / ideal_by_count[np.minimum(num_relevant_U, k)]
    return ndcg_U
