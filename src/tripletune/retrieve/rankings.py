# Shape letters in this file:
#   U viewers, B viewers of one block, M films, N entities, D vector width, K places
"""First-stage rankings of the whole catalogue, for evaluation: popularity, and the R-GAT's own film score.

They share one mask with the retrievers' lists (``first_stage.py``): what the viewer rated before the cutoff. Both are
measured, never shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from scipy import sparse
from torch import Tensor

from tripletune.config import LISTED_FILMS
from tripletune.retrieve.specialists import Likes, RgatFit
from tripletune.retrieve.topk import Ints, Ragged, product_blocks, top_columns
from tripletune.schemas import QUESTION
from tripletune.stable_hash import VIEWERS, mix


def ranked_viewers(rows: pl.LazyFrame, num: int, seed: int) -> pl.Series | None:
    """Ids of the viewers whose valid and test questions are ranked; None: of all.

    Args:
        rows: of all buckets of the split (``viewers.read_rows``).
        num: that many, the first in the order in which ``rank`` takes them; 0 for all.
        seed: the run's.
    """
    asked = rows.filter(pl.col("label").is_in(["valid", "test"])).select(pl.col("user_id").unique())
    users = asked.collect(engine="streaming")["user_id"].sort()
    if not 0 < num < len(users):
        return None
    return users.gather(np.lexsort((users.to_numpy(), mix(users.to_numpy(), seed + VIEWERS)))[:num])


def rank_by_popularity(like_counts_M: Ints, seen: Ragged, num_viewers: int) -> Ints:
    """Columns (U, 20) by number of likes in the rows of the fit; ties by column, which is the hash of the film."""
    order_M = np.argsort(-like_counts_M, kind="stable")
    score_M = torch.empty(len(order_M))
    # ranks instead of counts: all distinct, so that no block has ties to settle
    score_M[torch.from_numpy(order_M)] = -torch.arange(len(order_M), dtype=torch.float32)
    blocks: Callable[[int, int], Tensor] = lambda start, stop: score_M.repeat(stop - start, 1)  # noqa: E731
    return top_columns(blocks, num_viewers, seen, LISTED_FILMS)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmEvidence:
    """What a fit's films are ranked by, put in order once."""

    rgat: RgatFit
    weights_MN: sparse.csr_array
    """Attention of each film's triples; columns are the entities that have any."""
    entities_ND: Tensor

    @classmethod
    def build(cls, rgat: RgatFit) -> FilmEvidence:
        """Look the entities up by key."""
        weights_MN = attention_matrix(rgat)
        used_N = np.unique(weights_MN.indices)
        entities_ND = rgat.entity_vectors_ND[torch.from_numpy(used_N.astype(np.int64))]
        return cls(rgat=rgat, weights_MN=weights_MN[:, used_N], entities_ND=entities_ND)


def rank_by_rgat(evidence: FilmEvidence, likes: Likes, seen: Ragged, num_viewers: int) -> Ints:
    """Columns (U, 20) of the R-GAT's catalogue by ``bias + logsumexp`` over a film's triples.

    Args:
        seen: columns of the R-GAT's catalogue rated before the cutoff.
    """
    users_UD = evidence.rgat.pool(likes, num_viewers)
    return top_columns(film_scores(evidence, users_UD), num_viewers, seen, LISTED_FILMS)[0]


def film_scores(evidence: FilmEvidence, users_UD: Tensor) -> Callable[[int, int], Tensor]:
    """``score_block`` of the film score ``bias_i + log sum_t alpha_t exp(beta <u, e_t> / sqrt(d))``.

    The sum over triples is one sparse product with the films' attention, of exponentials taken once per entity and
    relative to the viewer's highest. A film without triples, or with none within e**-87 of that (the range of
    float32), gets the floor of that range: it ranks below every film that the knowledge graph speaks for.
    """
    rgat, weights_MN = evidence.rgat, evidence.weights_MN
    scale = rgat.beta / users_UD.shape[1] ** 0.5
    products = product_blocks(users_UD, evidence.entities_ND)

    def score_block(start: int, stop: int) -> Tensor:
        logits_BN = products(start, stop) * scale
        highest_B1 = logits_BN.amax(dim=1, keepdim=True)
        powers_NB = (logits_BN - highest_B1).exp_().T.contiguous().numpy()
        sums_BM = torch.from_numpy(weights_MN @ powers_NB).T
        evidence_BM = sums_BM.clamp(min=torch.finfo(torch.float32).tiny).log() + highest_B1
        scores_BM: Tensor = evidence_BM.add_(rgat.bias_M).contiguous()
        return scores_BM

    return score_block


def attention_matrix(rgat: RgatFit) -> sparse.csr_array:
    """The fit's attention as a sparse matrix (M, N): films in the catalogue's order, entities by row."""
    edges = rgat.attention.join(rgat.entity_rows, on="entity")
    column_E = rgat.catalogue.columns(edges["movie_id"].to_numpy())
    return sparse.csr_array(
        (edges["alpha"].to_numpy(), (column_E, edges["row"].to_numpy())),
        shape=(len(rgat.catalogue), rgat.entity_vectors_ND.shape[0]),
    )


def as_rows(questions: pl.DataFrame, answers: pl.DataFrame, retriever: str, top: pl.Series) -> pl.DataFrame:
    """Rows of ``schemas.RANKINGS`` for questions that have one answer."""
    named = questions.with_columns(top.alias("top"), retriever=pl.lit(retriever))
    return named.join(answers.rename({"movie_id": "answer"}), on=QUESTION, maintain_order="left")
