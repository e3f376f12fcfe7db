"""Ranking metrics of lists of film ids against the held-out films, one value per viewer.

Ranked lists are what retrieval and the language model write, so the metrics read lists, not score matrices: a held-out
film that a list does not hold counts 0, whether the list is short, or a retriever never found the film.
"""

# Shape letters in this file:
#   U viewers (one list each), K positions of a list that are looked at

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

FloatArray = npt.NDArray[np.float64]


def hr_at_k(lists: pl.Series, relevant: pl.Series, k: int) -> FloatArray:
    """Hit rate: 1 for a viewer with a relevant film among the first ``k`` of the list, else 0.

    Args:
        lists: List of film ids, best first, without duplicates; may be shorter than ``k``.
        relevant: what was held out for the same viewers, in the same order: one film id each, or a List of them.
        k: cut-off, at least 1.

    Returns:
        Shape (U,), float64; NaN for a viewer with nothing relevant, so that a plain mean shows the mistake.

    Raises:
        ValueError: ``k`` is below 1, the lengths differ, an entry is null, or a list names a film twice.
    """
    hit_UK, num_relevant_U = _hits(lists, relevant, k)
    return np.where(num_relevant_U > 0, hit_UK.any(axis=1).astype(np.float64), np.nan)


def ndcg_at_k(lists: pl.Series, relevant: pl.Series, k: int) -> FloatArray:
    """Normalised discounted cumulative gain of the first ``k`` films.

    Binary gain, log2 discount, ideal list cut at ``k`` (Jarvelin & Kekalainen, TOIS 2002). With one relevant film this
    is 1 / log2(rank + 1), rank from 1.

    Args, returns and errors as for ``hr_at_k``; values in [0, 1].
    """
    hit_UK, num_relevant_U = _hits(lists, relevant, k)
    return _ndcg(hit_UK, num_relevant_U)


def score_lists(lists: pl.Series, relevant: pl.Series, cutoffs: Sequence[int]) -> pl.DataFrame:
    """Columns ``hr_at_<k>`` and ``ndcg_at_<k>`` for every cut-off, one row per list, in one pass over the lists."""
    hit_UK, num_relevant_U = _hits(lists, relevant, max(cutoffs))
    columns: dict[str, FloatArray] = {}
    for k in cutoffs:
        columns[f"hr_at_{k}"] = np.where(num_relevant_U > 0, hit_UK[:, :k].any(axis=1).astype(np.float64), np.nan)
        columns[f"ndcg_at_{k}"] = _ndcg(hit_UK[:, :k], num_relevant_U)
    return pl.DataFrame(columns)


def _ndcg(hit_UK: npt.NDArray[np.bool_], num_relevant_U: npt.NDArray[np.int64]) -> FloatArray:
    k = hit_UK.shape[1]
    discount_K = 1.0 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    ideal_by_count = np.concatenate([[np.nan], np.cumsum(discount_K)])  # NaN where nothing is relevant
    # a sum along the row, not a matrix product: its order, and so its last bit, never depends on BLAS threads
    gain_U = np.where(hit_UK, discount_K, 0.0).sum(axis=1)
    ndcg_U: FloatArray = gain_U / ideal_by_count[np.minimum(num_relevant_U, k)]
    return ndcg_U


def _hits(lists: pl.Series, relevant: pl.Series, k: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Which of the first ``k`` entries are relevant, shape (U, K), and how many films are, shape (U,)."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if len(lists) != len(relevant):
        raise ValueError(f"{len(lists)} lists but {len(relevant)} viewers' relevant films; both need one per viewer")
    if not isinstance(relevant.dtype, pl.List):
        relevant = relevant.cast(pl.Int64).reshape((-1, 1)).arr.to_list()
    frame = pl.DataFrame(
        {"list": lists.cast(pl.List(pl.Int64)), "relevant": relevant.cast(pl.List(pl.Int64))}
    ).with_row_index("viewer")
    _require_plain(frame)
    wanted = frame.select("viewer", item="relevant").explode("item", empty_as_null=False).unique()
    found = (
        frame.select("viewer", item=pl.col("list").list.head(k))
        .with_columns(position=pl.int_ranges(pl.col("item").list.len()))
        .explode("item", "position", empty_as_null=False)
        .join(wanted, on=["viewer", "item"], how="semi")
    )
    hit_UK = np.zeros((len(lists), k), dtype=np.bool_)
    hit_UK[found["viewer"].to_numpy(), found["position"].to_numpy()] = True
    num_relevant_U = np.bincount(wanted["viewer"].to_numpy(), minlength=len(lists)).astype(np.int64)
    return hit_UK, num_relevant_U


def _require_plain(frame: pl.DataFrame) -> None:
    """Refuse nulls and films named twice: a list that repeats a film holds fewer films than it says."""
    for column in ("list", "relevant"):
        films = pl.col(column)
        is_null = films.is_null() | films.list.eval(pl.element().is_null()).list.any()
        if (bad := frame.filter(is_null)).height:
            raise ValueError(
                f"{column} of viewer number {bad['viewer'][0]} holds a null; every entry must be a film id"
            )
    repeated = frame.filter(pl.col("list").list.n_unique() < pl.col("list").list.len())
    if repeated.height:
        raise ValueError(
            f"the list of viewer number {repeated['viewer'][0]} names a film twice: {repeated['list'][0].to_list()}"
        )
