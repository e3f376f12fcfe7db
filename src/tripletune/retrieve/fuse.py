# Shape letters in this file:
#   U viewers, K places of a list, E entries of all lists, S distinct (viewer, film) pairs
"""Reciprocal rank fusion (Cormack, Clarke & Buettcher, SIGIR 2009): several lists of a viewer's best films made one.

A film at place r (from 1) of a list of weight w counts ``w / (k + r)``; a list that does not name it counts nothing.
Scores of different models are never compared, so none needs to be calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tripletune.retrieve.topk import Ints

UNIT = float(1 << 40)
"""Counts are whole multiples of 1 / this: sums are exact, and ties do not hang on the order of the lists."""


def fuse(tops: Sequence[Ints], weights: Sequence[float], k: float, length: int) -> Ints:
    """The ``length`` best films of each viewer by the sum over lists of ``weight / (k + rank)``.

    Args:
        tops: a list per model: columns of one catalogue (U, K), best first, -1 at the end of shorter rows.
            K may differ; no row names a film twice.
        weights: of each list, finite and not negative.
        k: how little the first places stand out, above 0; the paper has 60.
        length: places of the result, at least 1.

    Returns:
        Columns (U, length), best first, ties by the lower column; -1 at the end of shorter rows.

    Raises:
        ValueError: lists and weights differ in number, or the lists in viewers.
    """
    num_viewers = len(tops[0])
    if len(tops) != len(weights) or any(len(top_UK) != num_viewers for top_UK in tops):
        raise ValueError(f"{len(tops)} lists of {[len(top) for top in tops]} viewers, and {len(weights)} weights")
    viewer_E, column_E, count_E = (
        np.concatenate(parts)
        for parts in zip(
            *(_entries(top_UK, weight, k) for top_UK, weight in zip(tops, weights, strict=True)), strict=True
        )
    )
    fused_UK = np.full((num_viewers, length), -1, dtype=np.int64)
    if not len(viewer_E):
        return fused_UK
    order_E = np.lexsort((column_E, viewer_E))
    viewer_E, column_E, count_E = viewer_E[order_E], column_E[order_E], count_E[order_E]
    first_S = np.flatnonzero((np.diff(viewer_E, prepend=-1) != 0) | (np.diff(column_E, prepend=-1) != 0))
    viewer_S, column_S, count_S = viewer_E[first_S], column_E[first_S], np.add.reduceat(count_E, first_S)
    order_S = np.lexsort((column_S, -count_S, viewer_S))
    place_S = np.arange(len(viewer_S)) - np.searchsorted(viewer_S, viewer_S)
    kept_S = place_S < length
    fused_UK[viewer_S[kept_S], place_S[kept_S]] = column_S[order_S][kept_S]
    return fused_UK


def _entries(top_UK: Ints, weight: float, k: float) -> tuple[Ints, Ints, Ints]:
    """Viewer, column and count of each film of a list."""
    count_K = np.rint(UNIT * weight / (k + 1 + np.arange(top_UK.shape[1]))).astype(np.int64)
    viewer_E, place_E = np.nonzero(top_UK >= 0)
    return viewer_E, top_UK[viewer_E, place_E], count_K[place_E]
