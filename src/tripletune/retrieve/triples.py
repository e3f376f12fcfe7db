# Shape letters in this file:
#   U users, P pairs of user and film, T rows of pair and triple, X triples, N entities, D vector width, E likes
"""Hint 2: choice of a film's facts to show this user.

The default, ``personal``, is the R-GAT's own posterior over a film's triples for this user,
``s(u, i, r, t) = log alpha_i(r, t) + beta <u, e_t> / sqrt(d)``: the terms whose logsumexp ranks the film. The other
modes are for comparison: ``published`` (``alpha <v_i, e_t>``, no relation and no user), ``most-shared`` (the entity
that most of the user's likes have in common), ``random`` and ``none``. ``learned`` scores by what the language model's
answers gained from facts shown in earlier runs (``learned.py``).

A share of films may be explored: their facts are drawn at random. With the probability of each choice
(``propensity``) the log of what was shown and what it was worth then tells what other choices would have been worth.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from tripletune.models.rgat.serve import RgatFit
from tripletune.models.serving.catalogue import Likes
from tripletune.models.serving.topk import Ints
from tripletune.stable_hash import TIES, mix, pair_hash
from tripletune.store.read import scan_parquet

Choice = Literal["personal", "published", "most-shared", "random", "none", "learned"]
Doubles = npt.NDArray[np.float64]
Reals = TypeVar("Reals", npt.NDArray[np.float32], npt.NDArray[np.float64])

CHUNK_BYTES = 1 << 19
"""Size of the vectors that ``dots`` gathers at a time: several times as fast when they fit the cache."""

RANDOM = 2 << 40
"""Added to the run's seed for the ``random`` mode."""
_EXPLORED, _DRAWN = 25 << 40, 26 << 40
"""Added to the run's seed: which films are explored, and which of their triples are drawn."""


class Scorer(Protocol):
    """Scores of the mode ``learned``."""

    def score(self, likes: Likes, num_users: int, user_P: Ints, movie_P: Ints, pair_T: Ints, triple_T: Ints) -> Doubles:
        """A score of each row of pair and triple, (T,); the rows are those of ``TripleTable.expand``."""


@dataclass(frozen=True, slots=True)
class Exploration:
    """Draw of the films whose triples are chosen at random, by a stable hash of user, cutoff and film."""

    share: float
    cutoff_U: Ints
    """Cutoff of each user's query: as the history grows, other films are explored."""


def read_triples(knowledge: Path) -> pl.DataFrame:
    """This run's triples whose entity has a name: ``movie_id, relation, entity, entity_name``."""
    entities = scan_parquet(knowledge / "entities.parquet")
    tails = entities.filter(pl.col("name").is_not_null()).select(
        pl.col("entity_id").alias("tail"), entity="key", entity_name="name"
    )
    heads = entities.filter(pl.col("kind") == "movie").select(
        pl.col("entity_id").alias("head"), movie_id=pl.col("key").str.strip_prefix("movie:").cast(pl.Int32)
    )
    relations = scan_parquet(knowledge / "relations.parquet").select(
        pl.col("relation_id").alias("relation"), relation_name="name"
    )
    triples = scan_parquet(knowledge / "triples.parquet")
    joined = triples.join(heads, on="head").join(tails, on="tail").join(relations, on="relation")
    return joined.select("movie_id", "entity", "entity_name", relation="relation_name").collect()


@dataclass(frozen=True, slots=True, kw_only=True)
class TripleTable:
    """A fit's weighted triples by film: film ``i`` of ``films`` holds the rows ``offsets[i]:offsets[i + 1]``."""

    films: Ints
    offsets: Ints
    alpha_X: Doubles
    log_alpha_X: Doubles
    entity_X: Ints
    """Row of the entity in the R-GAT's vectors."""
    entity_vectors_ND: Doubles
    """Those vectors in float64: the stored score can be recomputed to 1e-6."""
    hash_X: Ints
    """Stable hash of relation and entity; a film's rows are in this order, which breaks ties."""
    first_X: npt.NDArray[np.bool_]
    """False where an earlier row of the film has the same entity (a director who is also the writer)."""
    text: pl.DataFrame
    """Columns ``relation, entity, entity_name`` by row."""

    @classmethod
    def build(cls, rgat: RgatFit, triples: pl.DataFrame, seed: int) -> TripleTable:
        """Join ``read_triples`` with a fit's attention by keys; a triple outside the R-GAT's training is skipped."""
        known = triples.join(rgat.attention, on=["movie_id", "relation", "entity"]).join(rgat.entity_rows, on="entity")
        facts = known.select("relation", "entity").unique(maintain_order=True)
        facts = facts.with_columns(hash=pl.Series(_hash_facts(facts, seed), dtype=pl.Int64))
        table = known.join(facts, on=["relation", "entity"]).sort("movie_id", "hash", "relation", "entity")
        films, counts = np.unique(table["movie_id"].to_numpy().astype(np.int64), return_counts=True)
        alpha_X = table["alpha"].to_numpy().astype(np.float64)
        return cls(
            films=films,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            alpha_X=alpha_X,
            log_alpha_X=np.log(np.maximum(alpha_X, np.finfo(np.float32).tiny)),
            entity_vectors_ND=rgat.entity_vectors_ND.double().numpy(),
            entity_X=table["row"].to_numpy().astype(np.int64),
            hash_X=table["hash"].to_numpy(),
            first_X=table.select(pl.struct("movie_id", "entity").is_first_distinct()).to_series().to_numpy(),
            text=table.select("relation", "entity", "entity_name"),
        )

    def expand(self, movie_P: Ints) -> tuple[Ints, Ints]:
        """Triples of films: for each row the index into ``movie_P`` and the triple; no row for films without any."""
        place_P = np.minimum(np.searchsorted(self.films, movie_P), len(self.films) - 1)
        found_P = self.films[place_P] == movie_P if len(self.films) else np.zeros(len(movie_P), dtype=bool)
        pairs = np.flatnonzero(found_P)
        starts, ends = self.offsets[place_P[pairs]], self.offsets[place_P[pairs] + 1]
        return np.repeat(pairs, ends - starts), spread(starts, ends - starts)


def spread(starts_P: Ints, counts_P: Ints) -> Ints:
    """``start, start + 1, ...`` for each start, as many as its count, one after the other."""
    before_P = np.cumsum(counts_P) - counts_P
    places: Ints = np.arange(counts_P.sum()) + np.repeat(starts_P - before_P, counts_P)
    return places


def choose_triples(
    table: TripleTable,
    rgat: RgatFit,
    likes: Likes,
    users_U: Ints,
    user_P: Ints,
    movie_P: Ints,
    *,
    mode: Choice,
    num: int,
    seed: int,
    scorer: Scorer | None = None,
    exploration: Exploration | None = None,
) -> pl.DataFrame:
    """The best triples of each (user, film) pair.

    Args:
        table: the fit's triples.
        rgat: the same fit's vectors.
        likes: the users' likes before their cutoffs.
        users_U: id of each user.
        user_P, movie_P: the pairs; users are numbered as in ``users_U``.
        mode: scoring of a triple, see the module's docstring.
        num: triples per pair, at most.
        seed: of the ``random`` mode and of the exploration.
        scorer: of the ``learned`` mode.
        exploration: None: no film is explored.

    Returns:
        ``pair`` (index of the pair), ``rank`` from 0, ``relation, entity, entity_name, score, propensity``; sorted by
        pair and rank. Pairs without a triple have no row. An explored pair's score is its draw, from 0 to 1.
    """
    if mode == "none" or num == 0:
        user_P, movie_P = user_P[:0], movie_P[:0]
    pair_T, triple_T = table.expand(movie_P)
    user_T = user_P[pair_T]
    match mode:
        case "published":
            column_P = rgat.catalogue.columns(movie_P)
            score_T = table.alpha_X[triple_T] * dots(
                rgat.pool_vectors_MD.double().numpy(),
                column_P[pair_T],
                table.entity_vectors_ND,
                table.entity_X[triple_T],
            )
        case "most-shared":
            score_T = count_shared(table, likes, user_T, triple_T)
        case "random":
            pair_hash_P = pair_hash(users_U[user_P], movie_P, seed + RANDOM).astype(np.int64)
            score_T = _uniform(pair_hash(pair_hash_P[pair_T], table.hash_X[triple_T], seed))
        case "learned" if scorer:
            score_T = scorer.score(likes, len(users_U), user_P, movie_P, pair_T, triple_T)
        case _:
            score_T = score_personally(table, rgat, rgat.pool(likes, len(users_U)), user_T, triple_T)
    best_T, _ = _best_of_each(pair_T, score_T, num)
    if exploration:
        film_P = pair_hash(users_U[user_P], movie_P, seed + _EXPLORED).astype(np.int64)
        film_P = pair_hash(film_P, exploration.cutoff_U[user_P], seed + _EXPLORED).astype(np.int64)
        is_explored_P = _uniform(mix(film_P, seed + _EXPLORED)) < exploration.share
        drawn_T = _uniform(pair_hash(film_P[pair_T], table.hash_X[triple_T], seed + _DRAWN))
        score_T = np.where(is_explored_P[pair_T], drawn_T, score_T)
    row_T, rank_T = _best_of_each(pair_T, score_T, num)
    share = 1.0 if mode == "random" else exploration.share if exploration else 0.0
    propensity_T = _propensities(pair_T, row_T, np.isin(row_T, best_T), num, share)
    return table.text[triple_T[row_T]].select(
        pl.Series("pair", pair_T[row_T], dtype=pl.Int64),
        pl.Series("rank", rank_T, dtype=pl.Int8),
        "relation",
        "entity",
        "entity_name",
        pl.Series("score", score_T[row_T], dtype=pl.Float32),
        pl.Series("propensity", propensity_T, dtype=pl.Float64),
    )


def _uniform(hashes: npt.NDArray[np.uint64]) -> Doubles:
    """Hashes as numbers in [0, 1)."""
    shares: Doubles = (hashes >> np.uint64(11)).astype(np.float64) / 2.0**53
    return shares


def _propensities(pair_T: Ints, row_R: Ints, is_best_R: npt.NDArray[np.bool_], num: int, share: float) -> Doubles:
    """Probability with which each chosen row (R,) was chosen, over all draws of the exploration.

    ``min(num, n) / n`` for each of n triples where they are drawn, which happens with probability ``share``; else
    those with the best scores are certain.
    """
    count_R = np.bincount(pair_T, minlength=1)[pair_T[row_R]]
    propensity_R: Doubles = share * np.minimum(num, count_R) / count_R + (1.0 - share) * is_best_R
    return propensity_R


def score_personally(
    table: TripleTable, rgat: RgatFit, users_UD: torch.Tensor, user_T: Ints, triple_T: Ints
) -> Doubles:
    """The score ``s`` of each row of user and triple, (T,)."""
    scale = rgat.beta / np.sqrt(users_UD.shape[1])
    score_T: Doubles = table.log_alpha_X[triple_T] + scale * _products(users_UD, user_T, table, triple_T)
    return score_T


def _products(left: torch.Tensor, left_T: Ints, table: TripleTable, triple_T: Ints) -> Doubles:
    """<left row, entity vector> for each row, in float64."""
    return dots(left.double().numpy(), left_T, table.entity_vectors_ND, table.entity_X[triple_T])


def dots(left_LD: npt.NDArray[Any], left_T: Ints, right_RD: Reals, right_T: Ints) -> Reals:
    """``<left_LD[left_T], right_RD[right_T]>`` (T,), in their dtype; a value depends on its two rows alone."""
    size = CHUNK_BYTES // (right_RD.shape[1] * right_RD.itemsize)
    chunk_2BD = np.empty((2, size, right_RD.shape[1]), right_RD.dtype)
    dots_T = np.empty(len(left_T), right_RD.dtype)
    for start in range(0, len(left_T), size):
        rows = slice(start, start + size)
        left_BD, right_BD = chunk_2BD[:, : len(left_T[rows])]
        # with mode="clip" numpy writes into the chunk directly, twice as fast as indexing; no row is out of range
        np.take(left_LD, left_T[rows], axis=0, out=left_BD, mode="clip")
        np.take(right_RD, right_T[rows], axis=0, out=right_BD, mode="clip")
        np.einsum("td,td->t", left_BD, right_BD, out=dots_T[rows])
    return dots_T


def count_shared(table: TripleTable, likes: Likes, user_T: Ints, triple_T: Ints) -> Doubles:
    """Number of the user's liked films with the triple's entity, in any relation."""
    like_E, liked_X = table.expand(likes.movie_E)
    once = table.first_X[liked_X]
    num_rows = int(table.entity_X.max(initial=0)) + 1
    keys, counts = np.unique(likes.user_E[like_E[once]] * num_rows + table.entity_X[liked_X[once]], return_counts=True)
    wanted_T = user_T * num_rows + table.entity_X[triple_T]
    if not len(keys):
        return np.zeros(len(wanted_T))
    place_T = np.minimum(np.searchsorted(keys, wanted_T), len(keys) - 1)
    return np.where(keys[place_T] == wanted_T, counts[place_T], 0).astype(np.float64)


def _best_of_each(pair_T: Ints, score_T: Doubles, num: int) -> tuple[Ints, Ints]:
    """Rows of the ``num`` highest scores of each pair, and their ranks; the earlier row wins a tie.

    ``pair_T`` is sorted. One pass over all rows per rank: quicker than sorting, and ``num`` is small.
    """
    starts = np.flatnonzero(np.diff(pair_T, prepend=-1))
    counts = np.diff(np.append(starts, len(pair_T)))
    left_T = score_T.copy()
    rows, ranks = [], []
    for rank in range(num if len(starts) else 0):
        is_best_T = left_T == np.repeat(np.maximum.reduceat(left_T, starts), counts)
        row = np.minimum.reduceat(np.where(is_best_T, np.arange(len(pair_T)), len(pair_T)), starts)[counts > rank]
        left_T[row] = -np.inf
        rows.append(row)
        ranks.append(np.full(len(row), rank))
    if not rows:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    row_T, rank_T = np.concatenate(rows), np.concatenate(ranks)
    order = np.lexsort((rank_T, pair_T[row_T]))
    return row_T[order], rank_T[order]


def _hash_facts(facts: pl.DataFrame, seed: int) -> Ints:
    """A stable integer per relation and entity key."""
    digests = b"".join(
        hashlib.blake2b(f"{relation}\t{entity}".encode(), digest_size=8).digest()
        for relation, entity in facts.iter_rows()
    )
    return mix(np.frombuffer(digests, dtype="<i8"), seed + TIES).astype(np.int64)
