"""Ids of films, users and people in the files of a synthetic release and its IMDb dumps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from tripletune.synthetic.sizes import Size
from tripletune.synthetic.world import ALL_ROLES, GENRES, Catalogue, Entity, IntArray

FIRST_PERSON = 101
_CREDITS_PER_TITLE = 9
_CREDITS_PER_PERSON = 8


# Shape letters: U users, M films of the release, I titles of IMDb (those of the release among them)
@dataclass(frozen=True, slots=True)
class Ids:
    """Ids by number of user and film, and IMDb's titles in order of their ids.

    ``film_I`` is the number of the release's film, -1 for another title; ``first_person`` the id of the first person of
    each role, ``num_people`` counts them all and ``others`` the further people of the dumps, whose ids follow.
    """

    user_U: pl.Series
    movie_M: pl.Series
    title_I: IntArray
    film_I: IntArray
    imdb_M: IntArray
    first_person: dict[str, int]
    num_people: int
    others: int

    def key(self, entity: Entity) -> str:
        """Name of an entity in the knowledge graph; see ``world.Entity``."""
        if entity.kind == "genre":
            return f"genre:{GENRES[entity.index]}"
        if entity.kind == "decade":
            return f"decade:{entity.index}s"
        return f"person:nm{self.first_person[entity.kind] + entity.index:07d}"


def draw_ids(catalogue: Catalogue, size: Size, rng: np.random.Generator) -> Ids:
    """Draw movie ids in random order, else they would reveal popularity, and IMDb ids among those of other titles."""
    first_person, next_person = {}, FIRST_PERSON
    for role in ALL_ROLES:
        first_person[role] = next_person
        next_person += catalogue.pools[role]
    own_credits = sum(int((people >= 0).sum()) for people in catalogue.cast.values())
    more_credits = max(0, size.principals - own_credits)
    num_titles = catalogue.num_movies + -(-more_credits // _CREDITS_PER_TITLE)
    title_I = 20_000 + np.cumsum(rng.integers(1, 20, num_titles))
    place_M = rng.permutation(num_titles)[: catalogue.num_movies]
    film_I = np.full(num_titles, -1)
    film_I[place_M] = np.arange(catalogue.num_movies)
    gaps = 2 if size.as_published else 4
    user_U = np.cumsum(rng.integers(1, gaps, size.viewers)) + (0 if size.as_published else 6)
    movie_M = rng.permutation(np.cumsum(rng.integers(1, 5, size.movies)) + (0 if size.as_published else 19))
    return Ids(
        user_U=pl.Series(user_U, dtype=pl.Int32),
        movie_M=pl.Series(movie_M, dtype=pl.Int32),
        title_I=title_I,
        film_I=film_I,
        imdb_M=title_I[place_M],
        first_person=first_person,
        num_people=next_person - FIRST_PERSON,
        others=more_credits // _CREDITS_PER_PERSON,
    )


def numbered(prefix: str, column: str) -> pl.Expr:
    """A number as an IMDb id: ``tt`` or ``nm`` and at least seven digits."""
    return pl.lit(prefix) + pl.col(column).cast(pl.String).str.zfill(7)
