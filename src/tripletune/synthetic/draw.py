"""Draw the next film: through one of several channels, repeated until the film is released and new to the user.

In a session of epoch ``t`` and taste ``z`` a user with preferred entity ``e`` finds a film through

    e's channel      with probability ``share_e`` (0 without a preference); otherwise through
    any film alike   with ``STRAY``, the trend of epoch ``t`` with ``TREND``, or taste ``z`` with the rest
"""

# Shape letters in this file: B users of a block, R ratings, A ratings of users not yet done, D rows to draw
from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tripletune.synthetic.channels import TASTES, Channels
from tripletune.synthetic.world import IntArray

Int32Array = npt.NDArray[np.int32]

STRAY, TREND = 0.02, 0.15
"""Shares of the viewings that do not come through the preferred entity: any film, and the epoch's trend."""


class FilmDraw:
    """Draw of a film for each row, none twice for a user, as if found one after the other.

    Among the rows of a user with the same film the earliest keeps it and the others draw again. Once drawn, a film
    stays with that row or an earlier one, so the result equals that of drawing row by row, each until the film is new.

    Args:
        channels: the distributions over films.
        user_R: user numbers from 0, ascending; a user's rows in time order.
        taste_R, epoch_R: taste and epoch of each row.
        entity_B: preferred entity of each user, an index of ``channels.entities``; -1 for none.
        rng: the block's own.
    """

    def __init__(
        self,
        channels: Channels,
        user_R: Int32Array,
        taste_R: IntArray,
        epoch_R: IntArray,
        entity_B: IntArray,
        rng: np.random.Generator,
    ) -> None:
        self.channels, self.rng, self.user_R = channels, rng, user_R
        self.taste_R, self.epoch_R = taste_R.astype(np.int32), epoch_R.astype(np.int32)
        self.entity_B = entity_B.astype(np.int32)
        self.share_B = np.where(entity_B >= 0, channels.share_N[entity_B], 0.0)
        self.released_M = channels.released_M.astype(np.int32)
        self.movie_R = np.empty(len(user_R), dtype=np.int32)

    def films(self) -> Int32Array:
        """The film of each row. Shape (R,)."""
        # user, film and row in one integer: sorting these is the fastest way to find a user's duplicates
        row_bits, film_bits = len(self.movie_R).bit_length(), self.channels.num_movies.bit_length()
        row_A = np.arange(len(self.movie_R))
        again_D = row_A
        while len(again_D):
            self._draw(again_D)
            pair_A = (self.user_R[row_A].astype(np.int64) << film_bits) | self.movie_R[row_A]
            key_A = np.sort((pair_A << row_bits) | row_A)
            pair_A = key_A >> row_bits
            again_D = np.sort(key_A[1:][pair_A[1:] == pair_A[:-1]] & ((1 << row_bits) - 1))
            unfinished_B = np.zeros(len(self.entity_B), dtype=bool)
            unfinished_B[self.user_R[again_D]] = True
            row_A = row_A[unfinished_B[self.user_R[row_A]]]
        return self.movie_R

    def _draw(self, row_D: IntArray) -> None:
        """Draw a film for each row, again until it is released."""
        tables = self.channels.table_CT
        while len(row_D):
            user_D = self.user_R[row_D]
            share_D = self.share_B[user_D]
            chance_D = (self.rng.random(len(row_D)) - share_D) / (1.0 - share_D)
            channel_D = np.where(
                chance_D < 0.0,
                TASTES + self.channels.num_epochs + self.entity_B[user_D],
                np.where(chance_D < STRAY + TREND, TASTES + self.epoch_R[row_D], self.taste_R[row_D]),
            )
            slot_D = self.rng.integers(tables.shape[1], size=len(row_D), dtype=np.int32)
            movie_D = tables[channel_D, slot_D]
            stray_D = np.flatnonzero((chance_D >= 0.0) & (chance_D < STRAY))
            movie_D[stray_D] = self.rng.integers(self.channels.num_movies, size=len(stray_D))
            self.movie_R[row_D] = movie_D
            row_D = row_D[self.released_M[movie_D] > self.epoch_R[row_D]]
