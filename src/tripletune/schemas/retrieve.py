"""Columns of the retrieve stage's files."""

from __future__ import annotations

import polars as pl

from tripletune.schemas.base import columns
from tripletune.schemas.hint import Hint
from tripletune.schemas.hints import RETRIEVED_HINTS
from tripletune.schemas.query import PURPOSES

RETRIEVED = columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "unseen": pl.Boolean,
        "cutoff": pl.Int32,
        "candidates": pl.List(pl.Int32),
        **{hint.name: hint.dtype for hint in RETRIEVED_HINTS},
    }
)
"""retrieve/retrieved/shard=NNN.parquet, sorted by query. All columns are computed from the user's rows with
``position < cutoff``, the position of the first answer. ``candidates`` in the retriever's order (shown shuffled),
``ranking`` is hint 1 (the first candidates in LightGCN's order, for every retriever), ``similar`` films that similar
users liked, ``topics`` facts that many of the likes share."""
RETRIEVED_COLUMNS = {
    "candidates": "films in the retriever's order",
    **{hint.name: f"hint {hint.number}: {hint.meaning}" for hint in RETRIEVED_HINTS},
}
"""What the columns of ``RETRIEVED`` hold that only it has."""

SAMPLE = columns({"user_id": pl.Int32, "likes": pl.Int32, "decile": pl.Int8, "cluster": pl.Int16, "draws": pl.Int32})
"""retrieve/sample.parquet, where ``sample.method`` is not ``all``: every user eligible for training examples, sorted by
user. ``likes`` before the cutoff, their ``decile`` among these users (0 the fewest), the ``cluster`` (null where the
method makes none), and the number of ``draws``; 0 draws give no training example.

Columns:
    likes: the user's likes before the cutoff
    decile: of the likes among these users, 0 the fewest
    cluster: of the user's vector; null where the method makes none
    draws: number of times the user was drawn; 0: no training example
"""

CHOICES = columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "cutoff": pl.Int32,
        "movie_id": pl.Int32,
        "rank": pl.Int8,
        "relation": pl.String,
        "entity": pl.String,
        "entity_name": pl.String,
        "score": pl.Float32,
        "propensity": pl.Float64,
    }
)
"""retrieve/choices/shard=NNN.parquet: the triples chosen for a user's candidates and liked films; rank from 0.

Columns:
    rank: place of the triple among the film's chosen ones, from 0
    relation: name of the relation
    entity: key of the entity
    entity_name: its name
    score: score by which the triple was chosen, under ``retrieve.triple_choice``; where it was drawn, its draw
    propensity: probability that the film's chosen triples have this one, over ``retrieve.explore_triples`` draws; 1
        where it is certain
"""

PROFILES = columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "cutoff": pl.Int32,
        "relation": pl.String,
        "films": pl.Int32,
        "mass": pl.Float32,
        "attention": pl.Float32,
    }
)
"""retrieve/profiles/shard-NNN.parquet, sorted by query and relation: the user's preference profile. ``films``: liked
films before the cutoff that have a triple, the same in each row of a query; ``mass``: R-GAT's posterior over a film's
triples for this user, summed by relation, mean over the films; ``attention``: the same from alpha alone, without the
user. Both sum to one over a query's rows; relations that no such film has are omitted.

Columns:
    relation: name of the relation
    films: liked films before the cutoff that have a triple
    mass: posterior of the relation's triples for this user, mean over the films
    attention: the same from alpha alone, without the user
"""

COUNTS = columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "cutoff": pl.Int32,
        "answers": pl.Int32,
        "hits": pl.Int32,
        "pairs": pl.Int32,
        "told": pl.Int32,
    }
)
"""retrieve/counts/shard-NNN.parquet, sorted by query, for the manifest: held-out likes, those among the candidates,
films for which hint 2 is chosen, and those that have a triple.

Columns:
    answers: held-out likes
    hits: those among the candidates
    pairs: films for which hint 2 is chosen
    told: those that have a triple
"""

VIEWERS = columns({"user_id": pl.Int32, "ratings": pl.Int32, "films": pl.UInt64, "rows": pl.UInt64})
"""retrieve/viewers/shard-NNN.parquet, sorted by user: checksums of the rows that a user's queries depend on, by which a
later run finds the users to compute again. ``ratings`` up to the last answer; sums of the hashes of their films, and of
whole rows (film, rating, time, position, label, unseen).

Columns:
    ratings: rows up to the last answer
    films: sum of the hashes of their films
    rows: sum of the hashes of the whole rows
"""

RANKINGS = columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "cutoff": pl.Int32,
        "unseen": pl.Boolean,
        "retriever": pl.String,
        "answer": pl.Int32,
        "top": pl.List(pl.Int32),
    }
)
"""retrieve/rankings.parquet: full-catalogue top films for valid and test by each list, all under the same mask.

The lists are those of ``RANKED_ALWAYS``, of the retrievers that were trained, and ``fused`` where it is the retriever.
``ease`` weighs a user's history by recency, ``ease-plain`` does not; both are there when the catalogue fits
``retrieve.ease_max_films`` or when candidates come from EASE.

Columns:
    retriever: name of the list
    answer: the held-out like
    top: the first films of the whole catalogue, best first
"""
RANKED_ALWAYS = ("popularity", "lightgcn", "rgat")
"""Lists that every run ranks by."""
RECENT = "popularity-7d"
"""Row of a split with one date for all users (``split.STARTS``): the most liked films of the days before."""
RECENT_DAYS = 7
DAY = 86_400
"""Seconds."""

REQUERIED = columns(
    {
        "user_id": pl.Int32,
        "purpose": PURPOSES,
        "cutoff": pl.Int32,
        "change": pl.Enum(["time", "ratings"]),
        "retriever": pl.String,
        "top": pl.List(pl.Int32),
    }
)
"""retrieve/requeried.parquet: lists of a sample of queries, computed again after the user's rows from the cutoff on
were changed. The audit compares them with those of ``RANKINGS`` and ``RETRIEVED``, which must be the same.

Columns:
    change: what was changed: the times alone, or films and ratings
    retriever: name of the list, or of the column of ``RETRIEVED``
    top: the films, best first; of a column of topics three numbers for each: films, recent, bytes of the entity's key
"""


def as_numbers(hint: Hint) -> pl.Expr:
    """A hint's column of ``RETRIEVED`` in the form of ``REQUERIED.top``."""
    if hint.kind != "topics":
        return pl.col(hint.name).cast(REQUERIED["top"])
    field = pl.element().struct.field
    numbers = pl.concat_list(field("films"), field("recent"), field("entity").str.len_bytes().cast(pl.Int32))
    return pl.col(hint.name).list.eval(numbers.explode(empty_as_null=False)).cast(REQUERIED["top"])
