# Shape letters in this file: V ids in the list
"""Where ids stand in a list."""

from __future__ import annotations

import numpy as np

from tripletune.models.serving.topk import Ints


class Places:
    """Index from user id to the place in a list of unique ids."""

    def __init__(self, users_V: Ints) -> None:
        self._by_id_V = np.argsort(users_V)
        self._sorted_V = users_V[self._by_id_V]

    def __call__(self, wanted: Ints) -> Ints:
        """The place of each id, -1 for one not in the list."""
        place = np.minimum(np.searchsorted(self._sorted_V, wanted), len(self._sorted_V) - 1)
        return np.where(self._sorted_V[place] == wanted, self._by_id_V[place], -1)
