"""Users: their preferences, and the films they watch and rate with times, in blocks of bounded memory.

Each session of a user has a taste, which walks from one session to the next over two circles (mood and style);
``draw.py`` draws the films. A watched film is liked with log-odds ``quality + generosity + strength * carries``, the
generosity being one of five values per user. Number of ratings, sessions and times do not depend on the preference.
``benchmarks/synthetic_oracle.py`` inverts exactly this model.
"""

# Shape letters in this file: U users, B users of a block, S sessions, R ratings
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tripletune.synthetic.channels import MOODS, STYLES, Channels
from tripletune.synthetic.clock import draw_times, epoch_of
from tripletune.synthetic.draw import FilmDraw, Int32Array
from tripletune.synthetic.sizes import MAX_SHARE, MIN_RATINGS, Size
from tripletune.synthetic.world import KIND_SHARES, KINDS, Catalogue, IntArray

STEP = 0.08
"""Probability that a circle's position moves by one between two sessions, in each direction."""
GENEROSITIES = (-1.0, -0.5, 0.0, 0.5, 1.0)
_SESSION = 20  # ratings per session, on average
_HIGH, _HIGH_PERCENT = (4.0, 4.5, 5.0), (55, 20, 25)
_LOW, _LOW_PERCENT = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5), (3, 6, 4, 14, 13, 35, 25)
_STARS = np.array([np.repeat(_LOW, _LOW_PERCENT), np.repeat(_HIGH, _HIGH_PERCENT)], dtype=np.float32)
_BLOCK = 1 << 19
"""Ratings drawn at a time, about."""


@dataclass(frozen=True, slots=True)
class Viewers:
    """Users; ``kind_U`` indexes ``KINDS``, ``entity_U`` planted entities (-1: none), ``ratings_U`` counts ratings."""

    kind_U: IntArray
    entity_U: IntArray
    ratings_U: IntArray


@dataclass(frozen=True, slots=True)
class Ratings:
    """Ratings in order of user and time: numbers of user and film, stars, seconds since 1970."""

    user_R: Int32Array
    movie_R: Int32Array
    stars_R: npt.NDArray[np.float32]
    time_R: IntArray


def draw_users(size: Size, channels: Channels, rng: np.random.Generator) -> Viewers:
    """Draw a kind per user, one of its planted entities, and a number of ratings; in total exactly ``size.ratings``."""
    kind_U = rng.choice(len(KINDS), size=size.viewers, p=KIND_SHARES)
    entity_U = np.full(size.viewers, -1)
    for number, kind in enumerate(KINDS[:-1]):
        of_kind = np.flatnonzero([entity.kind == kind for entity in channels.entities])
        chosen_U = kind_U == number
        entity_U[chosen_U] = rng.choice(of_kind, size=chosen_U.sum())
    # films that are not out on the first day cannot be relied on
    most = max(MIN_RATINGS, int(MAX_SHARE * (channels.released_M == 0).sum()))
    return Viewers(kind_U, entity_U, _lengths(size, most, rng))


def _lengths(size: Size, most: int, rng: np.random.Generator) -> IntArray:
    """Ratings per user, log-normal above ``MIN_RATINGS`` and at most ``most``, with the exact total. Shape (U,)."""
    total, room = size.ratings - MIN_RATINGS * size.viewers, most - MIN_RATINGS
    above_U = np.exp(size.spread * rng.standard_normal(size.viewers))
    for _ in range(50):  # scaling up pushes more users to the limit, so it takes a few rounds
        above_U = np.minimum(above_U * (total / max(above_U.sum(), 1.0)), room)
    whole_U = np.floor(above_U).astype(np.int64)
    first = np.argsort((whole_U == room) + 1.0 - (above_U - whole_U), kind="stable")
    whole_U[first[: total - whole_U.sum()]] += 1
    return MIN_RATINGS + whole_U


def draw_ratings(
    size: Size, catalogue: Catalogue, channels: Channels, viewers: Viewers, seed: int
) -> Iterator[Ratings]:
    """Draw the ratings of all users, in blocks of whole users; each block from its own generator."""
    upto_U = np.cumsum(viewers.ratings_U)
    first = 0
    while first < size.viewers:
        begun = upto_U[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(upto_U, begun + _BLOCK, side="right")))
        rng = np.random.default_rng([seed, 0xB10C, first])
        yield _draw_block(size, catalogue, channels, viewers, slice(first, last), rng)
        first = last


def _draw_block(
    size: Size, catalogue: Catalogue, channels: Channels, viewers: Viewers, block: slice, rng: np.random.Generator
) -> Ratings:
    ratings_B = viewers.ratings_U[block]
    user_R = np.repeat(np.arange(len(ratings_B), dtype=np.int32), ratings_B)
    first_R = np.zeros(len(user_R), dtype=bool)
    first_R[np.cumsum(ratings_B) - ratings_B] = True
    opens_R = first_R | (rng.random(len(user_R), dtype=np.float32) < 1.0 / _SESSION)
    session_R = np.cumsum(opens_R) - 1
    user_S = user_R[opens_R]
    time_R, start_S = draw_times(size, user_S, session_R, rng)
    taste_R = walk_tastes(first_R[opens_R], rng)[session_R]
    epoch_R = epoch_of(start_S, size.first_day.year, channels.num_epochs)[session_R]
    entity_B = viewers.entity_U[block]
    movie_R = FilmDraw(channels, user_R, taste_R, epoch_R, entity_B, rng).films()
    likes = catalogue.quality_M[movie_R].astype(np.float32)
    likes += rng.choice(np.array(GENEROSITIES, dtype=np.float32), size=len(ratings_B))[user_R]
    prefers_R = (entity_B >= 0)[user_R] & channels.carries_NM[entity_B[user_R], movie_R]
    likes += np.float32(size.strength) * prefers_R
    liked_R = rng.random(len(user_R), dtype=np.float32) < 1.0 / (1.0 + np.exp(-likes))
    stars_R = _STARS[liked_R.astype(np.int8), rng.integers(100, size=len(user_R), dtype=np.int8)]
    return Ratings(user_R + np.int32(block.start), movie_R, stars_R, time_R)


def walk_tastes(first_S: npt.NDArray[np.bool_], rng: np.random.Generator) -> IntArray:
    """Taste of each session: uniform for a user's first, then a walk on both circles. Shape (S,)."""
    taste_S = np.zeros(len(first_S), dtype=np.int64)
    start_S = np.flatnonzero(first_S)[np.cumsum(first_S) - 1]
    for places, stride in ((MOODS, STYLES), (STYLES, 1)):
        chance_S = rng.random(len(first_S))
        moved_S = (chance_S < STEP).astype(np.int64) - (chance_S > 1.0 - STEP)
        moved_S[first_S] = rng.integers(places, size=int(first_S.sum()))
        walked_S = np.cumsum(moved_S)
        before_S = (walked_S - moved_S)[start_S]
        taste_S += (walked_S - before_S) % places * stride
    return taste_S
