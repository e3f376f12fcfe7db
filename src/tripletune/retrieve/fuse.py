# Shape letters in this file:
#   U users, K places of a list, S places of all lists
"""Reciprocal rank fusion (Cormack, Clarke & Buettcher, SIGIR 2009) of several lists of a user's best films.

A film at place r (from 1) of a list of weight w counts ``w / (k + r)``; a list without it counts nothing. Scores of
different models are never compared, so none needs to be calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tripletune.models.serving.topk import Ints

UNIT = float(1 << 40)
"""Counts are whole multiples of ``1 / UNIT``: sums are exact, and ties do not depend on the order of the lists."""


def fuse(tops: Sequence[Ints], weights: Sequence[float], k: float, length: int) -> Ints:
    """The ``length`` best films of each user by the sum over lists of ``weight / (k + rank)``.

    Args:
        tops: a list per model: columns of one catalogue (U, K), best first, -1 at the end of shorter rows.
            K may differ; no row holds a film twice.
        weights: of each list, finite and not negative.
        k: smoothing of the first places, above 0: the larger, the less they stand out; 60 in the paper.
        length: places of the result, at least 1.

    Returns:
        Columns (U, length), best first, ties by the lower column; -1 at the end of shorter rows.

    Raises:
        ValueError: the numbers of lists and weights differ, or the lists have different numbers of users.
    """
    num_viewers = len(tops[0])
    if len(tops) != len(weights) or any(len(top_UK) != num_viewers for top_UK in tops):
        raise ValueError(f"{len(tops)} lists of {[len(top) for top in tops]} users, and {len(weights)} weights")
    column_US = np.concatenate(tops, axis=1)
    count_US = np.concatenate([_counts(*one, k) for one in zip(tops, weights, strict=True)], axis=1)
    # a user's films in order of column: entries of the same film in several lists become neighbours
    order_US = np.argsort(column_US, axis=1, kind="stable")
    column_US, count_US = (np.take_along_axis(part, order_US, axis=1) for part in (column_US, count_US))
    total_US = count_US.copy()
    for apart in range(1, len(tops)):
        same_US = column_US[:, apart:] == column_US[:, :-apart]
        total_US[:, :-apart] += np.where(same_US, count_US[:, apart:], 0)
    is_film_US = column_US >= 0
    is_film_US[:, 1:] &= column_US[:, 1:] != column_US[:, :-1]
    best_UK = np.argsort(np.where(is_film_US, -total_US, 1), axis=1, kind="stable")[:, :length]
    found_UK = np.take_along_axis(np.where(is_film_US, column_US, -1), best_UK, axis=1)
    fused_UK = np.full((num_viewers, length), -1, dtype=np.int64)
    fused_UK[:, : found_UK.shape[1]] = found_UK
    return fused_UK


def _counts(top_UK: Ints, weight: float, k: float) -> Ints:
    """Count of each place of a list."""
    count_K = np.rint(UNIT * weight / (k + 1 + np.arange(top_UK.shape[1]))).astype(np.int64)
    return np.broadcast_to(count_K, top_UK.shape)
