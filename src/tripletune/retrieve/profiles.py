# Shape letters in this file:
#   U queries, B likes of a block, T rows of like and triple, G rows of like and relation,
#   M films with triples, X triples, R runs (all triples of a film by one relation), C relations, D vector width
"""Preference profile of a user: weights of the relations by which liked films match the user.

Per liked film the R-GAT's posterior over its triples, ``softmax`` of the scores that choose hint 2, is summed by
relation; the mean over the films is the profile's ``mass``. ``attention`` is the same mean of alpha alone, which does
not depend on the user. A relation with more mass than attention weighs more for this user than by alpha alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.models.rgat.serve import RgatFit
from tripletune.models.serving.catalogue import Likes
from tripletune.models.serving.topk import Floats, Ints
from tripletune.retrieve.triples import TripleTable, dots, spread
from tripletune.schemas.base import conform
from tripletune.schemas.query import FIT_OF, QUERY_KEY
from tripletune.schemas.retrieve import PROFILES

LIKES_AT_ONCE = 1 << 13
"""Likes whose triples are scored at a time, at least; with some 15 triples a film that is 100,000 rows, some MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelationTable:
    """A fit's weighted triples by film and, within a film, by relation; all in float32, as profiles are stored."""

    names_C: npt.NDArray[np.object_]
    films_M: Ints
    offsets_M: Ints
    """Film ``i`` has the triples ``offsets_M[i]:offsets_M[i + 1]``; one more than there are films."""
    log_alpha_X: Floats
    entity_X: Ints
    vectors_ND: Floats
    runs_M: Ints
    """Film ``i`` has the runs ``runs_M[i]:runs_M[i + 1]``."""
    first_R: Ints
    """Place of a run's first triple among its film's."""
    relation_R: Ints
    share_R: npt.NDArray[np.float64]
    """Share of its film's attention in each run."""

    @classmethod
    def build(cls, table: TripleTable, rgat: RgatFit) -> RelationTable:
        """Sort a fit's triples; only those whose entity has a name are included, as in hint 2."""
        relations = table.text["relation"]
        names = relations.unique().sort()
        relation_X = relations.cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
        film_X = np.repeat(np.arange(len(table.films)), np.diff(table.offsets))
        order_X = np.lexsort((relation_X, film_X))
        alpha_X, relation_X = table.alpha_X[order_X], relation_X[order_X]
        start_R = np.flatnonzero((np.diff(film_X, prepend=-1) != 0) | (np.diff(relation_X, prepend=-1) != 0))
        film_R = film_X[start_R]
        whole_M = np.bincount(film_X, alpha_X, len(table.films))
        return cls(
            names_C=names.to_numpy(),
            films_M=table.films,
            offsets_M=table.offsets,
            log_alpha_X=table.log_alpha_X[order_X].astype(np.float32),
            entity_X=table.entity_X[order_X],
            vectors_ND=rgat.entity_vectors_ND.numpy(),
            runs_M=np.searchsorted(film_R, np.arange(len(table.films) + 1)),
            first_R=start_R - table.offsets[film_R],
            relation_R=relation_X[start_R],
            share_R=(np.add.reduceat(alpha_X, start_R) if len(start_R) else np.zeros(0)) / whole_M[film_R],
        )

    def places(self, movie_E: Ints) -> Ints:
        """Place of each film, -1 for one without triples."""
        if not len(self.films_M):
            return np.full(len(movie_E), -1)
        place_E = np.minimum(np.searchsorted(self.films_M, movie_E), len(self.films_M) - 1)
        return np.where(self.films_M[place_E] == movie_E, place_E, -1)


def find_profiles(
    fits: Mapping[str, RgatFit], tables: Mapping[str, RelationTable], queries: pl.DataFrame, history: pl.DataFrame
) -> pl.DataFrame:
    """Profiles of the queries' users, from the likes before the cutoff and the fit of the purpose.

    Args:
        fits, tables: R-GAT's vectors and triples by name of the fit.
        queries: ``schemas.QUERY_KEY``, unique.
        history: likes before the cutoff, ``user_id, purpose, movie_id, age``.

    Returns:
        Frame of ``schemas.PROFILES``, sorted by user, purpose and relation. A query whose likes have no triple has no
        row; any other has one row per relation of its films, and ``mass`` and ``attention`` each sum to one.
    """
    parts = [PROFILES.to_frame()]
    for name, fit in fits.items():
        purposes = [purpose for purpose, of_fit in FIT_OF.items() if of_fit == name]
        asked = queries.filter(pl.col("purpose").is_in(purposes)).select(QUERY_KEY).with_row_index("viewer")
        liked = history.join(asked, on=QUERY_KEY).sort("viewer", "age")
        likes = Likes(*(liked[column].to_numpy().astype(np.int64) for column in ("viewer", "movie_id", "age")))
        profiles = build_profiles(tables[name], fit, likes, len(asked))
        parts.append(conform(profiles.join(asked, on="viewer", maintain_order="left"), PROFILES))
    return pl.concat(parts).sort(*QUERY_KEY, "relation")


def build_profiles(table: RelationTable, rgat: RgatFit, likes: Likes, num_viewers: int) -> pl.DataFrame:
    """Profiles of users numbered from 0: ``viewer, relation, films, mass, attention``, sorted by user.

    Args:
        table: the fit's triples.
        rgat: the same fit's vectors.
        likes: sorted by user.
        num_viewers: U.
    """
    shape = (num_viewers, len(table.names_C))
    mass_UC, attention_UC = np.zeros(shape), np.zeros(shape)
    users_UD = rgat.pool(likes, num_viewers).numpy() * np.float32(rgat.beta / np.sqrt(rgat.pool_vectors_MD.shape[1]))
    place_E = table.places(likes.movie_E)
    user_E, place_E = likes.user_E[place_E >= 0], place_E[place_E >= 0]
    films_U = np.bincount(user_E, minlength=num_viewers)
    for first, last in _whole_users(films_U):
        user_B, place_B = user_E[first:last], place_E[first:last]
        runs_B = np.diff(table.runs_M)[place_B]
        run_G = spread(table.runs_M[place_B], runs_B)
        cell_G = np.repeat(user_B, runs_B) * shape[1] + table.relation_R[run_G]
        posterior_G = _posteriors(table, users_UD, user_B, place_B, run_G)
        for total_UC, share_G in ((mass_UC, posterior_G), (attention_UC, table.share_R[run_G])):
            total_UC += np.bincount(cell_G, share_G, total_UC.size).reshape(shape)
    viewer, relation = np.nonzero(attention_UC)
    columns = {"mass": mass_UC, "attention": attention_UC}
    return pl.DataFrame(
        {
            "viewer": pl.Series(viewer, dtype=pl.UInt32),
            "relation": pl.Series(table.names_C[relation], dtype=pl.String),
            "films": films_U[viewer],
            **{name: total_UC[viewer, relation] / films_U[viewer] for name, total_UC in columns.items()},
        }
    )


def _posteriors(table: RelationTable, users_UD: Floats, user_B: Ints, place_B: Ints, run_G: Ints) -> Floats:
    """The posterior of each relation of each like, (G,); the users are scaled."""
    rows_B, runs_B = np.diff(table.offsets_M)[place_B], np.diff(table.runs_M)[place_B]
    triple_T, user_T = spread(table.offsets_M[place_B], rows_B), np.repeat(user_B, rows_B)
    score_T = table.log_alpha_X[triple_T] + dots(users_UD, user_T, table.vectors_ND, table.entity_X[triple_T])
    begin_B = np.cumsum(rows_B) - rows_B
    score_T -= np.repeat(np.maximum.reduceat(score_T, begin_B), rows_B)
    power_G = np.add.reduceat(np.exp(score_T), np.repeat(begin_B, runs_B) + table.first_R[run_G])
    whole_B = np.add.reduceat(power_G, np.cumsum(runs_B) - runs_B)
    posterior_G: Floats = power_G / np.repeat(whole_B, runs_B)
    return posterior_G


def _whole_users(likes_U: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of about ``LIKES_AT_ONCE`` likes, cut between users: each user's sums are computed in one call, so that
    their last bits do not depend on the other users."""
    ends_U = np.cumsum(likes_U)
    first = 0
    while len(ends_U) and first < ends_U[-1]:
        last = int(ends_U[np.searchsorted(ends_U, min(first + LIKES_AT_ONCE, ends_U[-1]))])
        yield first, last
        first = last
