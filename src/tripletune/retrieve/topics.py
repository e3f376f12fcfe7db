# Shape letters in this file: F facts
"""Topics of a user's likes: the facts that more of them share than the likes of all users do.

A long history is summed up in a few lines, such as ``directed by Hayao Miyazaki: 7 liked films, 2 of the newest 10``.
Topics are chosen one by one. Of the likes that no earlier topic covers n have a fact, and m are to be expected if they
were drawn from the likes of all users in the fit; the fact with the largest log-likelihood ratio n ln(n / m) - (n - m)
(Dunning 1993, https://aclanthology.org/J93-1003, as for Poisson counts) is the next topic and covers its films. It is
large for broad facts and for striking ones: the excess n - m alone finds hardly any but decades and genres. A topic's
counts are of all likes before the cutoff.

Likes are counted and not modelled, so that counts of an earlier cutoff and of the likes since then add up to those of
today; nothing has to be kept from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from tripletune.models.serving.topk import Ints
from tripletune.retrieve.triples import TripleTable
from tripletune.schemas.hint import NEWEST_LIKES, TOPICS
from tripletune.schemas.query import QUERY_KEY

MIN_FILMS = 3
"""Likes that a topic covers at least; two films share some fact by chance."""
MIN_RATIO = 3.0
"""Log-likelihood ratio of a topic at least: the likes are 20 times as probable as if the user liked what all do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicTable:
    """Facts of a fit's films."""

    films: pl.DataFrame
    """``movie_id, fact``, unique; ``fact`` is a row of ``facts``."""
    facts: pl.DataFrame
    """Columns ``relation, entity, entity_name, share``; sorted by the first two. ``share``: of the likes in the rows of
    the fit, those of films that have the fact, and of one more for each fact, so that none is 0."""

    @classmethod
    def build(cls, table: TripleTable, movie_M: Ints, likes_M: Ints) -> TopicTable:
        """Number the facts, and count their share of the likes.

        Args:
            table: facts of the films.
            movie_M: movie ids, unique.
            likes_M: likes of these films in the rows of the fit.
        """
        texts = table.text.with_columns(movie_id=np.repeat(table.films, np.diff(table.offsets)))
        texts = texts.cast({"movie_id": pl.Int32}).unique(["movie_id", "relation", "entity"], maintain_order=True)
        popular = pl.DataFrame({"movie_id": movie_M, "likes": likes_M}).cast({"movie_id": pl.Int32})
        num_likes = int(likes_M.sum())
        facts = (
            texts.join(popular, on="movie_id", how="left")
            .group_by("relation", "entity")
            .agg(pl.col("entity_name").min(), share=(pl.col("likes").sum() + 1) / (num_likes + 1))
            .sort("relation", "entity")
            .with_row_index("fact")
        )
        films = texts.join(facts, on=["relation", "entity"]).select("movie_id", "fact").sort("movie_id", "fact")
        return cls(films=films, facts=facts.drop("fact"))

    def find(self, queries: pl.DataFrame, history: pl.DataFrame, num_topics: int) -> pl.Series:
        """Topics of each query, the most striking one first.

        Args:
            queries: ``QUERY_KEY``, unique.
            history: likes before the cutoff, ``QUERY_KEY, movie_id, age`` (newest 0), of at least these queries.
            num_topics: topics of a query at most.

        Returns:
            Lists of ``schemas.hint.TOPIC`` in the order of the queries; empty for queries without a topic.
        """
        numbered = queries.select(QUERY_KEY).with_row_index("row")
        likes = history.join(numbered, on=QUERY_KEY).select("row", "movie_id", "age").join(self.films, on="movie_id")
        counts = likes.group_by("row", "fact").agg(
            films=pl.len().cast(pl.Int32), recent=(pl.col("age") < NEWEST_LIKES).sum().cast(pl.Int32)
        )
        chosen = pl.concat([_NONE_CHOSEN, *self._choose(likes.select("row", "movie_id", "fact"), num_topics)])
        shown = chosen.join(counts, on=["row", "fact"]).join(self.facts.with_row_index("fact"), on="fact")
        lists = (
            shown.sort("row", "place")
            .group_by("row", maintain_order=True)
            .agg(topics=pl.struct("relation", "entity", "entity_name", "films", "recent"))
        )
        found = numbered.join(lists, on="row", how="left", maintain_order="left")["topics"]
        return found.cast(TOPICS).fill_null(pl.Series([[]], dtype=TOPICS))

    def _choose(self, uncovered: pl.DataFrame, num_topics: int) -> Iterator[pl.DataFrame]:
        """The next topic of all queries that have one: ``row, fact, place``.

        Args:
            uncovered: ``row, movie_id, fact``.
            num_topics: topics of a query at most.
        """
        shares = self.facts.select("share").with_row_index("fact")
        for place in range(num_topics):
            films = uncovered.group_by("row").agg(of_row=pl.col("movie_id").n_unique())
            best = (
                uncovered.group_by("row", "fact")
                .len()
                .filter(pl.col("len") >= MIN_FILMS)
                .join(films, on="row")
                .join(shares, on="fact")
                .with_columns(expected=pl.col("of_row") * pl.col("share"))
                .filter(pl.col("len") > pl.col("expected"))
                .with_columns(ratio=_ratio(pl.col("len"), pl.col("expected")))
                .filter(pl.col("ratio") >= MIN_RATIO)
                .sort("row", "ratio", "fact", descending=[False, True, False])
                .unique("row", keep="first", maintain_order=True)
            )
            if best.is_empty():
                return
            yield best.select("row", "fact", place=pl.lit(place, pl.Int32))
            covered = uncovered.join(best, on=["row", "fact"], how="semi")
            uncovered = uncovered.join(covered, on=["row", "movie_id"], how="anti")


def _ratio(found: pl.Expr, expected: pl.Expr) -> pl.Expr:
    """Log-likelihood ratio, rounded, as logarithms differ by processor in their last bits."""
    return (found * (found / expected).log() - (found - expected)).round(9)


_NONE_CHOSEN = pl.DataFrame(schema={"row": pl.UInt32, "fact": pl.UInt32, "place": pl.Int32})
