# Shape letters in this file: U queries, K candidates, M films of the catalogue, F films of the hint
"""Hint 3: the candidates that most users liked."""

from __future__ import annotations

import numpy as np

from tripletune.models.serving.topk import Ints

NUM_FILMS = 3


def most_liked(films_UK: Ints, like_counts_M: Ints) -> Ints:
    """Columns (U, F) of the most liked films of each row, most liked first, ties by the lower column.

    Args:
        films_UK: columns of the catalogue; -1 pads.
        like_counts_M: likes of each film in the rows that the fit was trained on, so that fit a knows no answer.

    Returns:
        -1 at the end of rows in which fewer films have a like.
    """
    counts_UK = np.where(films_UK >= 0, like_counts_M[films_UK], 0)
    order_UF = np.lexsort((films_UK, -counts_UK), axis=1)[:, :NUM_FILMS]
    films_UF = np.take_along_axis(films_UK, order_UF, axis=1)
    return np.where(np.take_along_axis(counts_UK, order_UF, axis=1) > 0, films_UF, -1)
