"""Synthetic film catalogue: years, genres, credits, and how often each film is watched and liked.

Vectorised; draws depend only on the seed. Films are numbered by popularity, so that callers can place oddities where
they will be seen; a film's content is independent of its popularity.
"""

# Shape letters in this file: M films, G genres, P people of a role, N planted entities
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tripletune.synthetic.sizes import Size

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_GENRE_SHARES = {
    **{"Drama": 0.39, "Comedy": 0.26, "Thriller": 0.14, "Action": 0.12, "Romance": 0.12, "Adventure": 0.08},
    **{"Crime": 0.09, "Sci-Fi": 0.08, "Horror": 0.10, "Fantasy": 0.06, "Mystery": 0.06, "Western": 0.04},
    **{"Children": 0.05, "Animation": 0.05, "Documentary": 0.08, "War": 0.03, "Musical": 0.02, "Film-Noir": 0.005},
}
GENRES = tuple(_GENRE_SHARES)
ROLES = ("director", "cinematographer", "writer", "actor")
"""Roles whose people users may prefer."""
ALL_ROLES = (*ROLES, "composer", "producer", "editor")
KINDS = (*ROLES, "genre", "decade", "none")
KIND_SHARES = (0.22, 0.15, 0.10, 0.15, 0.13, 0.10, 0.15)
_FILMS_PER_PERSON = {"director": 8, "cinematographer": 10, "writer": 5, "actor": 2, "composer": 10, "producer": 4}
"""A role's pool has the number of films divided by this; editors as cinematographers."""
_CREDITED = {"director": 1, "cinematographer": 1, "writer": 2, "actor": 5, "composer": 1, "producer": 2, "editor": 1}
_WITHOUT = {"director": 0.03, "cinematographer": 0.35, "writer": 0.06, "actor": 0.05, "composer": 0.4, "producer": 0.4}
"""Share of films that lack a role's credits, as published; editors as cinematographers."""
EPOCHS_PER_YEAR = 2
_DECADES = 7


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Films and their entities.

    ``year_M`` is 0 where the title has none; ``released_M`` the epoch of the period in which a film comes out, 0 for
    films that are out before; ``logit_M`` the log-odds of being watched, ``quality_M`` of being liked; ``style_M`` a
    position on a circle that is in no file; ``genres_MG`` flags of ``GENRES``; ``cast`` has for each role the people of
    each film, (M, n) indices into the role's pool, -1 for none.
    """

    year_M: IntArray
    released_M: IntArray
    logit_M: FloatArray
    quality_M: FloatArray
    style_M: FloatArray
    genres_MG: BoolArray
    cast: dict[str, IntArray]
    pools: dict[str, int]

    @property
    def num_movies(self) -> int:
        """Films, M."""
        return len(self.year_M)


@dataclass(frozen=True, slots=True)
class Entity:
    """Entity that a user may prefer: ``index`` is a person of the role, one of ``GENRES``, or a decade's first year."""

    kind: str
    index: int


def draw_catalogue(size: Size, rng: np.random.Generator) -> Catalogue:
    """Draw films with Zipf-like popularity, flatter at the top and falling faster at the tail, as in MovieLens."""
    num_movies = size.movies
    rank_M = np.arange(num_movies)
    flat_top = np.clip(0.03 * num_movies, 3.0, 120.0)
    tail = 3.0 * (num_movies / 4000.0) ** 0.35
    logit_M = -1.05 * np.log1p(rank_M / flat_top) - tail * (rank_M / num_movies) ** 2
    weight_M = np.exp(logit_M)
    quality_M = rng.normal(0.0, 0.5, num_movies) + 0.15 * (logit_M - logit_M.mean())
    year_M, released_M = _draw_years(size, rng)
    pools = {role: max(8, num_movies // _FILMS_PER_PERSON.get(role, 10)) for role in ALL_ROLES}
    return Catalogue(
        year_M=year_M,
        released_M=released_M,
        logit_M=logit_M,
        quality_M=quality_M - np.average(quality_M, weights=weight_M),
        style_M=rng.random(num_movies),
        genres_MG=_draw_genres(num_movies, rng),
        cast={role: _draw_cast(size, role, pools[role], rng) for role in ALL_ROLES},
        pools=pools,
    )


def _draw_years(size: Size, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Years, most of them late, and release epochs. In a small release every film is out before the first rating."""
    last = size.last_day.year if size.as_published else size.first_day.year - 1
    first = last - 10 * _DECADES if size.as_published else last - last % 10 - 50
    year_M = np.floor(first + rng.beta(2.0, 1.2, size.movies) * (last + 1 - first)).astype(np.int64)
    epoch_M = (year_M - size.first_day.year) * EPOCHS_PER_YEAR + rng.integers(EPOCHS_PER_YEAR, size=size.movies)
    return year_M, epoch_M.clip(min=0)


def _draw_genres(num_movies: int, rng: np.random.Generator) -> BoolArray:
    share_G = np.array(list(_GENRE_SHARES.values()))
    listed_MG = rng.random((num_movies, len(GENRES))) < 0.7 * share_G
    main_M = rng.choice(len(GENRES), size=num_movies, p=share_G / share_G.sum())
    listed_MG[np.arange(num_movies), main_M] = True
    return listed_MG


def _draw_cast(size: Size, role: str, pool: int, rng: np.random.Generator) -> IntArray:
    """Distinct people per film, busy ones more often. Shape (M, credited); -1 where a name came up twice."""
    busy_P = (1.0 + np.arange(pool) / max(4.0, 0.02 * pool)) ** -0.8
    below_P = np.cumsum(busy_P) / busy_P.sum()
    people_MC = np.searchsorted(below_P, rng.random((size.movies, _CREDITED[role]))).clip(max=pool - 1)
    for place in range(1, people_MC.shape[1]):
        again_M = (people_MC[:, :place] == people_MC[:, place, None]).any(axis=1)
        people_MC[again_M, place] = -1
    if size.as_published:
        people_MC[rng.random(size.movies) < _WITHOUT.get(role, 0.35)] = -1
    return people_MC.astype(np.int64)


def planted_entities(catalogue: Catalogue, size: Size) -> list[Entity]:
    """Up to ``size.entities`` preferable entities of each kind: well-known people, rarer genres, late decades."""
    weight_M = np.exp(catalogue.logit_M)
    entities = []
    for role in ROLES:
        film_C, place_C = np.nonzero(catalogue.cast[role] >= 0)
        person_C = catalogue.cast[role][film_C, place_C]
        films_P = np.bincount(person_C, minlength=catalogue.pools[role])
        known_P = np.bincount(person_C, weights=weight_M[film_C], minlength=catalogue.pools[role])
        # a person with a single popular film is not a taste
        best = np.argsort(-known_P * films_P.clip(max=5), kind="stable")[: size.entities]
        entities += [Entity(role, int(person)) for person in best if films_P[person]]
    entities += [Entity("genre", genre) for genre in range(3, min(3 + size.entities, 12))]
    decade_M = catalogue.year_M // 10 * 10
    decades, films = np.unique(decade_M[decade_M > 0], return_counts=True)
    common = [int(decade) for decade in decades[films >= 0.04 * catalogue.num_movies]]
    return entities + [Entity("decade", decade) for decade in common[-size.entities :]]


def carriers(catalogue: Catalogue, entities: list[Entity]) -> BoolArray:
    """Whether each film carries each entity. Shape (N, M)."""
    return np.stack([_carriers(catalogue, entity) for entity in entities])


def _carriers(catalogue: Catalogue, entity: Entity) -> BoolArray:
    if entity.kind == "genre":
        return catalogue.genres_MG[:, entity.index]
    if entity.kind == "decade":
        of_decade_M: BoolArray = catalogue.year_M // 10 * 10 == entity.index
        return of_decade_M
    credited_M: BoolArray = (catalogue.cast[entity.kind] == entity.index).any(axis=1)
    return credited_M
