"""Times of ratings: sessions at least nine hours apart, ratings of a session seconds apart or in the same second."""

# Shape letters in this file: U users, S sessions in order of user and time, R ratings
from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tripletune.synthetic.sizes import Size
from tripletune.synthetic.world import EPOCHS_PER_YEAR, IntArray

_REST = 9 * 3600
_USUAL_GAP = 12 * 86_400.0
_SAME_SECOND = 0.2


def epoch_of(start_S: IntArray, first_year: int, num_epochs: int) -> IntArray:
    """Epoch of each session's start: half-years (UTC) since the period's first year. Shape (S,)."""
    month_S = start_S.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64) - 12 * (first_year - 1970)
    return (month_S * EPOCHS_PER_YEAR // 12).clip(0, num_epochs - 1)


def draw_times(
    size: Size, user_S: npt.NDArray[np.int32], session_R: IntArray, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Seconds since 1970 of each rating, and of the start of each session. Shapes (R,) and (S,)."""
    opens_R = np.diff(session_R, prepend=-1) > 0
    pause_R = rng.integers(1, 40, len(session_R), dtype=np.int8).astype(np.int64)
    pause_R[(rng.random(len(session_R), dtype=np.float32) < _SAME_SECOND) | opens_R] = 0
    clock_R = np.cumsum(pause_R)
    since_R = clock_R - clock_R[opens_R][session_R]
    lasts_S = since_R[np.append(opens_R[1:], True)]
    start_S = _starts(size, user_S, lasts_S, rng)
    return start_S[session_R] + since_R, start_S


def _starts(size: Size, user_S: npt.NDArray[np.int32], lasts_S: IntArray, rng: np.random.Generator) -> IntArray:
    """Starts of the sessions: gaps of days or weeks, shortened for users who would not fit into the period."""
    first_S = np.diff(user_S, prepend=-1) > 0
    begin_U = np.flatnonzero(first_S)
    gap_S = rng.exponential(_USUAL_GAP, len(user_S))
    gap_S[first_S] = 0.0
    needed_S = np.append(0, lasts_S[:-1]) + _REST
    needed_S[first_S] = 0
    wished_U = np.add.reduceat(gap_S, begin_U)
    room_U = (
        size.end - size.start - np.add.reduceat(needed_S, begin_U) - lasts_S[np.append(begin_U[1:], len(gap_S)) - 1]
    )
    room_U -= len(gap_S)  # rounding
    scale_U = np.minimum(1.0, room_U / np.maximum(wished_U, 1.0))
    spare_U = np.maximum(room_U - wished_U, 0.0)
    begun_U = size.start + (rng.random(len(begin_U)) * spare_U).astype(np.int64)
    number_S = np.cumsum(first_S) - 1
    step_S = (gap_S * scale_U[number_S]).astype(np.int64) + needed_S
    clock_S = np.cumsum(step_S)
    starts: IntArray = begun_U[number_S] + clock_S - clock_S[begin_U][number_S]
    return starts
