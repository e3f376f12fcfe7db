# Shape letters in this file: L logged facts, T rows of fact and triple of its film, F features
"""Logged facts with the features of all triples among which each was chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.models.serving.catalogue import Likes
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.triple_features import TripleFeatures
from tripletune.retrieve.triples import spread
from tripletune.schemas.query import QUERY_KEY

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """Contexts (query and film), the triples to choose from, the one that was shown, and its reward."""

    names: tuple[str, ...]
    """Of the features."""
    features_TF: Doubles
    count_L: Ints
    """Triples of each fact's film, at least 2; their rows follow each other."""
    taken_L: Ints
    """Row of the fact."""
    reward_L: Doubles
    """Nats."""
    propensity_L: Doubles
    share_L: Doubles
    user_L: Ints

    def __len__(self) -> int:
        return len(self.count_L)

    @property
    def starts_L(self) -> Ints:
        """First row of each fact's triples."""
        starts: Ints = np.cumsum(self.count_L) - self.count_L
        return starts

    @property
    def fact_T(self) -> Ints:
        """The logged fact of each row."""
        return np.repeat(np.arange(len(self)), self.count_L)

    @property
    def uniform_weight_L(self) -> Doubles:
        """Probability of the fact under a draw from its film's triples, over its propensity; one in the mean."""
        weight_L: Doubles = 1.0 / (self.count_L * self.propensity_L)
        return weight_L

    def only(self, is_kept_L: npt.NDArray[np.bool_]) -> Logged:
        """Some of the facts."""
        kept = np.flatnonzero(is_kept_L)
        rows_T = spread(self.starts_L[kept], self.count_L[kept])
        count_K = self.count_L[kept]
        return Logged(
            names=self.names,
            features_TF=self.features_TF[rows_T],
            count_L=count_K,
            taken_L=np.cumsum(count_K) - count_K + (self.taken_L - self.starts_L)[kept],
            reward_L=self.reward_L[kept],
            propensity_L=self.propensity_L[kept],
            share_L=self.share_L[kept],
            user_L=self.user_L[kept],
        )

    def column(self, name: str) -> Doubles:
        """A feature of each row, (T,)."""
        return self.features_TF[:, self.names.index(name)]

    def best(self, score_T: Doubles) -> Ints:
        """Row of the highest score among each fact's triples, (L,); the first wins a tie, as in ``choose_triples``."""
        best_L = np.maximum.reduceat(score_T, self.starts_L)
        is_best_T = score_T == np.repeat(best_L, self.count_L)
        return np.minimum.reduceat(np.where(is_best_T, np.arange(len(score_T)), len(score_T)), self.starts_L)


def gather(features: TripleFeatures, facts: pl.DataFrame, history: pl.DataFrame) -> Logged:
    """Features of the triples of each logged fact's film; a fact is skipped where its film has no other triple, or no
    longer has this one.

    Args:
        features: of fit a, with which training questions are retrieved.
        facts: of ``log.read_log``.
        history: likes before the cutoffs, of ``find_history``.
    """
    queries = facts.select(QUERY_KEY).unique().sort(QUERY_KEY).with_row_index("viewer")
    liked = history.join(queries, on=QUERY_KEY).sort("viewer", "age")
    likes = Likes(*(liked[name].to_numpy().astype(np.int64) for name in ("viewer", "movie_id", "age")))
    numbered = facts.join(queries, on=QUERY_KEY, maintain_order="left")
    triples, text = features.table, features.table.text
    film_L = numbered["movie_id"].to_numpy().astype(np.int64)
    pair_T, triple_T = triples.expand(film_L)
    rows = text[triple_T].select("relation", "entity").with_columns(fact=pl.Series(pair_T, dtype=pl.Int64))
    shown = numbered.select("relation", "entity").with_row_index("fact").cast({"fact": pl.Int64})
    place = rows.with_row_index("row").join(shown, on=["fact", "relation", "entity"], how="semi")
    count_L = np.bincount(pair_T, minlength=len(numbered))
    kept = place.filter(pl.col("fact").is_in(pl.Series(np.flatnonzero(count_L > 1)).implode())).sort("fact")
    kept_L = kept["fact"].to_numpy()
    rows_T = spread((np.cumsum(count_L) - count_L)[kept_L], count_L[kept_L])
    mine = numbered[kept_L]
    user_K = mine["viewer"].to_numpy().astype(np.int64)
    count_K = count_L[kept_L]
    pair_K = np.repeat(np.arange(len(kept_L)), count_K)
    return Logged(
        names=features.names,
        features_TF=features.matrix(likes, len(queries), user_K, film_L[kept_L], pair_K, triple_T[rows_T]),
        count_L=count_K,
        taken_L=np.cumsum(count_K)
        - count_K
        + kept["row"].to_numpy().astype(np.int64)
        - rows_T[np.cumsum(count_K) - count_K],
        reward_L=mine["reward"].to_numpy().astype(np.float64),
        propensity_L=mine["propensity"].to_numpy().astype(np.float64),
        share_L=mine["share"].to_numpy().astype(np.float64),
        user_L=mine["user_id"].to_numpy().astype(np.int64),
    )
