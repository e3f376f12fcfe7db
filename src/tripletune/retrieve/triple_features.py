# Shape letters in this file:
#   U users, P pairs of user and film, T rows of pair and triple, X triples, N entities, C relations, F features
"""What the learned choice of a film's triples reads of user, film and triple.

Every value of a row depends on its own user, film and triple alone. The right answer is no input: features come from
the fit, the knowledge graph and the likes before the cutoff.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.models.rgat.serve import RgatFit
from tripletune.models.serving.catalogue import Likes
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.profiles import RelationTable, build_profiles
from tripletune.retrieve.triples import Doubles, TripleTable, count_shared, score_personally

FEATURES = (
    "log attention",
    "match",
    "log posterior",
    "posterior",
    "posterior of a like",
    "films with it",
    "likes of these",
    "shared likes",
    "share of likes",
    "share of likes of a like",
    "profile mass",
    "profile above attention",
)
"""Names of the features but those of the relations.

log attention: of the R-GAT, without the user; match: ``beta <user, entity> / sqrt(d)``; posterior: softmax of their sum
over the film's triples; films with it, likes of these: logarithms of one plus the films of the knowledge graph with the
entity, and of their likes in the fit; shared likes: logarithm of one plus the user's other likes with the entity; share
of likes: the same as a share; profile: mass of the relation in the user's preference profile (``PROFILES``), and minus
its attention. Of a like: times one where the film is a like of the user, zero where it is a candidate.
"""
RELATION = "relation "
"""Before a relation's name: the feature is one where the triple is of this relation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TripleFeatures:
    """A fit's triples with what their features need."""

    table: TripleTable
    rgat: RgatFit
    relations: RelationTable
    relation_X: Ints
    """Place of the triple's relation among ``relations.names_C``."""
    films_X: Doubles
    likes_X: Doubles

    @classmethod
    def build(
        cls, table: TripleTable, rgat: RgatFit, relations: RelationTable, fit_likes: pl.DataFrame
    ) -> TripleFeatures:
        """Count films and likes by entity.

        Args:
            table, rgat, relations: of one fit.
            fit_likes: ``movie_id`` of the likes that the fit was trained on, of ``read_fit_likes``.
        """
        counts = fit_likes.group_by("movie_id").len()
        films = pl.DataFrame({"movie_id": table.films}).join(
            counts.cast({"movie_id": pl.Int64}), on="movie_id", how="left", maintain_order="left"
        )
        likes_M = films["len"].fill_null(0).to_numpy().astype(np.float64)
        film_X = np.repeat(np.arange(len(table.films)), np.diff(table.offsets))
        num = int(table.entity_X.max(initial=0)) + 1
        once_X = np.flatnonzero(table.first_X)
        films_N = np.bincount(table.entity_X[once_X], minlength=num)
        likes_N = np.bincount(table.entity_X[once_X], likes_M[film_X[once_X]], minlength=num)
        names = pl.Enum(relations.names_C.tolist())
        return cls(
            table=table,
            rgat=rgat,
            relations=relations,
            relation_X=table.text["relation"].cast(names).to_physical().to_numpy().astype(np.int64),
            films_X=np.log1p(films_N)[table.entity_X],
            likes_X=np.log1p(likes_N)[table.entity_X],
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in the order of ``matrix``."""
        return (*FEATURES, *(f"{RELATION}{name}" for name in self.relations.names_C))

    def columns(
        self, likes: Likes, num_users: int, user_P: Ints, movie_P: Ints, pair_T: Ints, triple_T: Ints
    ) -> dict[str, Doubles]:
        """``FEATURES`` of each row, (T,) each.

        Args:
            likes: of the users before their cutoffs, sorted by user.
            num_users: U.
            user_P, movie_P: the pairs; users are numbered from 0.
            pair_T, triple_T: of ``TripleTable.expand``, so sorted by pair.
        """
        user_T, relation_T = user_P[pair_T], self.relation_X[triple_T]
        score_T = score_personally(self.table, self.rgat, self.rgat.pool(likes, num_users), user_T, triple_T)
        log_alpha_T = self.table.log_alpha_X[triple_T]
        log_posterior_T = _log_softmax(pair_T, score_T)
        is_like_T = _are_likes(likes, user_P, movie_P)[pair_T]
        shared_T = count_shared(self.table, likes, user_T, triple_T) - is_like_T
        others_T = np.bincount(likes.user_E, minlength=num_users)[user_T] - is_like_T
        share_T = shared_T / np.maximum(others_T, 1)
        mass_UC, above_UC = self._profiles(likes, num_users)
        posterior_T = np.exp(log_posterior_T)
        values = (
            log_alpha_T,
            score_T - log_alpha_T,
            log_posterior_T,
            posterior_T,
            posterior_T * is_like_T,
            self.films_X[triple_T],
            self.likes_X[triple_T],
            np.log1p(shared_T),
            share_T,
            share_T * is_like_T,
            mass_UC[user_T, relation_T],
            above_UC[user_T, relation_T],
        )
        return dict(zip(FEATURES, values, strict=True))

    def matrix(
        self, likes: Likes, num_users: int, user_P: Ints, movie_P: Ints, pair_T: Ints, triple_T: Ints
    ) -> npt.NDArray[np.float64]:
        """All features (T, F), in the order of ``names``; arguments as for ``columns``."""
        columns = self.columns(likes, num_users, user_P, movie_P, pair_T, triple_T)
        relation_TC = np.eye(len(self.relations.names_C))[self.relation_X[triple_T]]
        return np.concatenate([np.stack(list(columns.values()), axis=1), relation_TC], axis=1)

    def _profiles(self, likes: Likes, num_users: int) -> tuple[Doubles, Doubles]:
        """Mass, and mass minus attention, of each relation in each user's profile, (U, C)."""
        found = build_profiles(self.relations, self.rgat, likes, num_users)
        names = pl.Enum(self.relations.names_C.tolist())
        user, relation = found["viewer"].to_numpy(), found["relation"].cast(names).to_physical().to_numpy()
        mass_UC, above_UC = np.zeros((2, num_users, len(self.relations.names_C)))
        mass_UC[user, relation] = found["mass"]
        above_UC[user, relation] = found["mass"] - found["attention"]
        return mass_UC, above_UC


def _log_softmax(pair_T: Ints, score_T: Doubles) -> Doubles:
    """Logarithm of the softmax over each pair's rows."""
    if not len(pair_T):
        return score_T
    starts_P = np.flatnonzero(np.diff(pair_T, prepend=-1))
    count_P = np.diff(np.append(starts_P, len(pair_T)))
    lowered_T = score_T - np.repeat(np.maximum.reduceat(score_T, starts_P), count_P)
    log_T: Doubles = lowered_T - np.repeat(np.log(np.add.reduceat(np.exp(lowered_T), starts_P)), count_P)
    return log_T


def _are_likes(likes: Likes, user_P: Ints, movie_P: Ints) -> npt.NDArray[np.bool_]:
    """Whether each pair's film is a like of its user."""
    num_films = int(max(likes.movie_E.max(initial=0), movie_P.max(initial=0))) + 1
    return np.isin(user_P * num_films + movie_P, likes.user_E * num_films + likes.movie_E)
