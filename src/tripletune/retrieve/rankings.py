# Shape letters in this file:
#   U users, B users of one block, M films, L the most liked of them, X triples of all films, N entities,
#   D vector width, K places, E films seen
"""First-stage rankings of the whole catalogue, for evaluation: popularity, and the R-GAT's own film score.

They share one mask with the retrievers' lists (``first_stage.py``): the films rated before the cutoff. Both are only
measured, never shown in a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from tripletune.config import LISTED_FILMS
from tripletune.models.rgat.serve import RgatFit
from tripletune.models.serving.catalogue import Likes
from tripletune.models.serving.topk import BLOCK, Ints, Ragged, top_columns
from tripletune.schemas.query import QUERY_KEY
from tripletune.stable_hash import VIEWERS, mix


def ranked_viewers(rows: pl.LazyFrame, num: int, seed: int) -> pl.Series | None:
    """Ids of the users whose valid and test queries are ranked; None: all users.

    Args:
        rows: of all buckets of the split (``histories.read_rows``).
        num: number of users, the first in the order of the stage ``rank``; 0 for all.
        seed: the run's.
    """
    asked = rows.filter(pl.col("label").is_in(["valid", "test"])).select(pl.col("user_id").unique())
    users = asked.collect(engine="streaming")["user_id"].sort()
    if not 0 < num < len(users):
        return None
    return users.gather(np.lexsort((users.to_numpy(), mix(users.to_numpy(), seed + VIEWERS)))[:num])


def rank_by_popularity(like_counts_M: Ints, seen: Ragged, num_viewers: int) -> Ints:
    """Columns (U, 20) by number of likes in the rows of the fit; ties by column, which is the hash of the film."""
    return rank_in_order(np.argsort(-like_counts_M, kind="stable"), seen, num_viewers)


def rank_in_order(order_M: Ints, seen: Ragged, num_viewers: int) -> Ints:
    """The first columns (U, 20) of one order of all films that a user has not rated."""
    place_M = np.empty_like(order_M)
    place_M[order_M] = np.arange(len(order_M))
    # enough of the first columns for every mask; the others cannot be in any list
    num = min(len(order_M), LISTED_FILMS + int(np.diff(seen.offsets).max(initial=0)))
    row_E, place_E = np.repeat(np.arange(num_viewers), np.diff(seen.offsets)), place_M[seen.values]
    masked = Ragged.from_pairs(row_E[place_E < num], place_E[place_E < num], num_viewers)
    score_L = -torch.arange(num, dtype=torch.float32)
    blocks: Callable[[int, int], Tensor] = lambda start, stop: score_L.repeat(stop - start, 1)  # noqa: E731
    top_UK = top_columns(blocks, num_viewers, masked, LISTED_FILMS)[0]
    return np.where(top_UK < 0, -1, order_M[top_UK])


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmEvidence:
    """Sorted triples and vectors by which a fit's films are ranked."""

    rgat: RgatFit
    starts_M: Tensor
    """Place of each film's first triple; films are in the catalogue's order."""
    entity_X: Tensor
    """Rows of ``entities_ND``."""
    alpha_X: Tensor
    entities_ND: Tensor
    """Vectors of the entities with any attention."""

    @classmethod
    def build(cls, rgat: RgatFit) -> FilmEvidence:
        """Build from a fit; entities are looked up by key."""
        edges = rgat.attention.join(rgat.entity_rows, on="entity")
        column_X = rgat.catalogue.columns(edges["movie_id"].to_numpy())
        used_N, entity_X = np.unique(edges["row"].to_numpy(), return_inverse=True)
        order_X = np.argsort(column_X * len(used_N) + entity_X, kind="stable")
        return cls(
            rgat=rgat,
            starts_M=torch.from_numpy(np.searchsorted(column_X[order_X], np.arange(len(rgat.catalogue)))),
            entity_X=torch.from_numpy(entity_X[order_X]),
            alpha_X=torch.from_numpy(edges["alpha"].to_numpy()[order_X]),
            entities_ND=rgat.entity_vectors_ND[torch.from_numpy(used_N.astype(np.int64))],
        )


def rank_by_rgat(evidence: FilmEvidence, likes: Likes, seen: Ragged, num_viewers: int) -> Ints:
    """Columns (U, 20) of the R-GAT's catalogue by ``bias + logsumexp`` over a film's triples.

    Args:
        seen: columns of the R-GAT's catalogue rated before the cutoff.
    """
    users_UD = evidence.rgat.pool(likes, num_viewers)
    return top_columns(film_scores(evidence, users_UD), num_viewers, seen, LISTED_FILMS)[0]


def film_scores(evidence: FilmEvidence, users_UD: Tensor) -> Callable[[int, int], Tensor]:
    """``score_block`` of the film score ``bias_i + log sum_t alpha_t exp(beta <u, e_t> / sqrt(d))``.

    The sum over triples is one sparse product of the films' attention with exponentials taken once per entity and
    relative to the user's highest. A film without triples, or with none within e**-87 of that (the range of
    float32), gets the floor of that range: it ranks below every film with a triple in the range.

    Users are columns until the end, so that the product reads whole rows. As in ``product_blocks`` every block has
    the same shape and overwrites the one before, and a user's scores do not depend on the others.
    """
    rgat, entities_ND = evidence.rgat, evidence.entities_ND
    scale = rgat.beta / users_UD.shape[1] ** 0.5
    block_DB = users_UD.new_zeros(users_UD.shape[1], BLOCK)
    logits_NB = users_UD.new_empty(len(entities_ND), BLOCK)

    def score_block(start: int, stop: int) -> Tensor:
        block_DB[:, : stop - start] = users_UD[start:stop].T
        torch.mm(entities_ND, block_DB, out=logits_NB).mul_(scale)
        highest_B = logits_NB.amax(dim=0)
        powers_NB = logits_NB.sub_(highest_B).exp_()
        sums_MB = functional.embedding_bag(
            evidence.entity_X, powers_NB, evidence.starts_M, mode="sum", per_sample_weights=evidence.alpha_X
        )
        scores_MB = sums_MB.clamp_(min=torch.finfo(torch.float32).tiny).log_().add_(highest_B)
        scores_BM: Tensor = scores_MB.add_(rgat.bias_M[:, None]).T.contiguous()
        return scores_BM[: stop - start]

    return score_block


def as_lists(ids_UK: Ints) -> pl.Series:
    """Rows of a padded array as lists of int32, without the padding -1."""
    kept_UK = ids_UK >= 0
    offsets = np.concatenate([[0], np.cumsum(kept_UK.sum(axis=1))]).astype(np.int64)
    lists = pa.LargeListArray.from_arrays(offsets, ids_UK[kept_UK].astype(np.int32))
    return pl.Series(pl.from_arrow(lists))


def as_rows(queries: pl.DataFrame, answers: pl.DataFrame, retriever: str, top: pl.Series) -> pl.DataFrame:
    """Rows of ``schemas.RANKINGS`` for queries that have one answer."""
    named = queries.with_columns(top.alias("top"), retriever=pl.lit(retriever))
    return named.join(answers.rename({"movie_id": "answer"}), on=QUERY_KEY, maintain_order="left")
