"""An invented film world: catalogue, credits, viewers with a planted preference, and what they watched and liked.

Each viewer but some prefers one entity (a director, a genre, ...) drawn from a few per kind, so that the preference
shows both in the knowledge graph and in who watches the same films. Vectorised; draws depend on the seed alone.
"""

# Shape letters in this file:
#   U viewers, B viewers of a block, M movies, P people of a role, G planted entities of a kind, R ratings
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tripletune.config import SyntheticConfig

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

GENRES = (
    *("Drama", "Comedy", "Thriller", "Action", "Romance", "Adventure", "Crime"),
    *("Sci-Fi", "Horror", "Fantasy", "Mystery", "Western"),
)
ROLES = ("director", "cinematographer", "writer", "actor")
KINDS = (*ROLES, "genre", "decade", "none")
_KIND_SHARES = (0.22, 0.15, 0.10, 0.15, 0.13, 0.10, 0.15)
_FILMS_PER_PERSON = {"director": 8, "cinematographer": 10, "writer": 5, "actor": 2}
"""Size of a role's pool: movies over this."""
_CREDITED = {"director": 1, "cinematographer": 1, "writer": 2, "actor": 5}
GROUPS = 4
"""Entities of a kind that viewers may prefer."""
FIRST_YEAR, LAST_YEAR = 1950, 2019
MIN_RATINGS = 20
_HIGH_STARS, _HIGH_SHARES = (4.0, 4.5, 5.0), (0.55, 0.2, 0.25)
_LOW_STARS, _LOW_SHARES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5), (0.03, 0.06, 0.04, 0.14, 0.13, 0.35, 0.25)
_BLOCK = 1024
_SESSION = 12  # ratings on one evening, on average


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Films and their entities.

    ``logit_M`` is the log-odds of being watched, ``quality_M`` of being liked; ``genres_MG`` says which of ``GENRES``;
    ``cast`` gives for each role the people of each film, (M, n) indices into the role's pool, -1 for none.
    """

    year_M: IntArray
    logit_M: FloatArray
    quality_M: FloatArray
    genres_MG: BoolArray
    cast: dict[str, IntArray]
    pools: dict[str, int]

    @property
    def num_movies(self) -> int:
        return len(self.year_M)


@dataclass(frozen=True, slots=True)
class Tastes:
    """``kind_U`` indexes ``KINDS``; ``entity_U`` the people of the role, ``GENRES`` or decades from ``FIRST_YEAR``."""

    kind_U: IntArray
    entity_U: IntArray


@dataclass(frozen=True, slots=True)
class Ratings:
    """Rows in order of viewer and time: indices of viewer and movie, stars, seconds since 1970."""

    user_R: IntArray
    movie_R: IntArray
    stars_R: FloatArray
    time_R: IntArray


def draw_catalogue(num_movies: int, rng: np.random.Generator) -> Catalogue:
    """Films with Zipf-like popularity; entities are independent of popularity and of each other.

    The first film is the most popular, so that callers can place oddities where they will be seen.
    """
    rank_M = np.arange(num_movies)
    recent_M = rng.beta(2.0, 1.2, num_movies)
    listed_MG = rng.random((num_movies, len(GENRES))) < 0.4 / np.sqrt(np.arange(1, len(GENRES) + 1))
    listed_MG[np.arange(num_movies), rng.integers(len(GENRES), size=num_movies)] = True
    pools = {role: max(2 * GROUPS, num_movies // films) for role, films in _FILMS_PER_PERSON.items()}
    cast = {role: _draw_cast(num_movies, pools[role], _CREDITED[role], rng) for role in ROLES}
    single_M = rng.random(num_movies) < 0.15
    cast["writer"][single_M, 1:] = -1
    return Catalogue(
        year_M=(FIRST_YEAR + recent_M * (LAST_YEAR + 1 - FIRST_YEAR)).astype(np.int64).clip(max=LAST_YEAR),
        logit_M=-0.8 * np.log(rank_M + 3.0) + rng.normal(0.0, 0.2, num_movies),
        quality_M=rng.normal(0.0, 0.5, num_movies),
        genres_MG=listed_MG,
        cast=cast,
        pools=pools,
    )


def _draw_cast(num_movies: int, pool: int, credited: int, rng: np.random.Generator) -> IntArray:
    """Distinct people per film, busy ones more often: Gumbel top-k over a Zipf-like weight. Shape (M, credited)."""
    busy_P = -0.6 * np.log(np.arange(pool) + 2.0)
    return np.argsort(-(busy_P + rng.gumbel(size=(num_movies, pool))), axis=1)[:, :credited].astype(np.int64)


def draw_tastes(catalogue: Catalogue, num_viewers: int, rng: np.random.Generator) -> Tastes:
    """A kind per viewer and, of its planted entities, one."""
    kind_U = rng.choice(len(KINDS), size=num_viewers, p=_KIND_SHARES)
    planted_KG = np.stack([planted_entities(catalogue, kind) for kind in KINDS])
    return Tastes(kind_U=kind_U, entity_U=planted_KG[kind_U, rng.integers(GROUPS, size=num_viewers)])


def planted_entities(catalogue: Catalogue, kind: str) -> IntArray:
    """The ``GROUPS`` entities of a kind that viewers may prefer, shape (G,): the busiest people, rarer genres."""
    if kind in ROLES:
        present = catalogue.cast[kind][catalogue.cast[kind] >= 0]
        busiest = np.argsort(-np.bincount(present, minlength=catalogue.pools[kind]), kind="stable")
        return busiest[:GROUPS]
    first = 3 if kind == "genre" else 2  # Drama is on too many films, the fifties have too few
    return np.arange(first, first + GROUPS)


def carries(catalogue: Catalogue, kind: str, entity: IntArray) -> BoolArray:
    """Whether each film carries each of the given entities of one kind. Shape (len(entity), M)."""
    if kind in ROLES:
        found_GM: BoolArray = (catalogue.cast[kind][None, :, :] == entity[:, None, None]).any(axis=2)
        return found_GM
    if kind == "genre":
        return catalogue.genres_MG[:, entity].T
    if kind == "decade":
        same_GM: BoolArray = (catalogue.year_M[None, :] - FIRST_YEAR) // 10 == entity[:, None]
        return same_GM
    return np.zeros((len(entity), catalogue.num_movies), dtype=bool)


def watch(catalogue: Catalogue, tastes: Tastes, settings: SyntheticConfig, rng: np.random.Generator) -> Ratings:
    """Draw what every viewer watched, liked and when.

    A viewer watches ``n`` films without replacement with log-odds ``logit + strength * carries`` (Gumbel top-k), in
    random order, and likes each with log-odds ``quality + strength * carries``.
    """
    counts_U = _history_lengths(len(tastes.kind_U), settings, rng)
    blocks = [
        _watch_block(catalogue, tastes, counts_U, np.arange(start, min(start + _BLOCK, len(counts_U))), settings, rng)
        for start in range(0, len(counts_U), _BLOCK)
    ]
    user_R, movie_R, stars_R = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    time_R = _times(counts_U, rng)
    return Ratings(user_R=user_R, movie_R=movie_R, stars_R=stars_R, time_R=time_R)


def _history_lengths(num_viewers: int, settings: SyntheticConfig, rng: np.random.Generator) -> IntArray:
    """Ratings per viewer: at least 20, log-normal above, never more than 60 % of the films (but 20). Shape (U,)."""
    sigma = 1.0
    above_U = rng.lognormal(-(sigma**2) / 2, sigma, num_viewers) * (settings.mean_ratings - MIN_RATINGS)
    most = max(MIN_RATINGS, int(0.6 * settings.movies))
    return (MIN_RATINGS + above_U.astype(np.int64)).clip(max=most)


def _watch_block(
    catalogue: Catalogue,
    tastes: Tastes,
    counts_U: IntArray,
    block_B: IntArray,
    settings: SyntheticConfig,
    rng: np.random.Generator,
) -> tuple[IntArray, IntArray, FloatArray]:
    carries_BM = np.zeros((len(block_B), catalogue.num_movies), dtype=bool)
    for number, kind in enumerate(KINDS):
        of_kind_B = tastes.kind_U[block_B] == number
        carries_BM[of_kind_B] = carries(catalogue, kind, tastes.entity_U[block_B][of_kind_B])
    bonus_BM = settings.preference_strength * carries_BM
    drawn_BM = catalogue.logit_M + bonus_BM + rng.gumbel(size=bonus_BM.shape)
    order_BM = np.argsort(-drawn_BM, axis=1)
    watched_BM = np.arange(catalogue.num_movies) < counts_U[block_B, None]
    row_R = np.nonzero(watched_BM)[0]
    movie_R = order_BM[watched_BM]
    # the order of the draw would put the preferred films first
    shuffle_R = np.lexsort((rng.random(len(row_R)), row_R))
    movie_R = movie_R[shuffle_R]
    mood_B = rng.normal(0.0, 0.4, len(block_B))
    odds_R = catalogue.quality_M[movie_R] + mood_B[row_R] + bonus_BM[row_R, movie_R]
    liked_R = rng.random(len(row_R)) < 1.0 / (1.0 + np.exp(-odds_R))
    high_R = rng.choice(_HIGH_STARS, size=len(row_R), p=_HIGH_SHARES)
    low_R = rng.choice(
        [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5], size=len(row_R), p=[0.03, 0.06, 0.04, 0.14, 0.13, 0.35, 0.25]
    )
    return block_B[row_R], movie_R, np.where(liked_R, high_R, low_R)


def _times(counts_U: IntArray, rng: np.random.Generator) -> IntArray:
    """Seconds of each rating: evenings of about a dozen ratings, a few seconds apart, some in the same second."""
    num_rows = int(counts_U.sum())
    first_R = np.zeros(num_rows, dtype=bool)
    first_R[np.cumsum(counts_U) - counts_U] = True
    evening_R = ~first_R & (rng.random(num_rows) < 1.0 / _SESSION)
    pause_R = rng.integers(0, 40, num_rows) * (rng.random(num_rows) > 0.3)
    step_R = np.where(evening_R, rng.integers(20_000, 5_000_000, num_rows), pause_R)
    start_U = rng.integers(946_684_800, 1_483_228_800, len(counts_U))  # 2000 to 2016
    clock_R = np.cumsum(np.where(first_R, 0, step_R))
    user_R = np.repeat(np.arange(len(counts_U)), counts_U)
    time_R: IntArray = start_U[user_R] + clock_R - clock_R[first_R][user_R]
    return time_R
