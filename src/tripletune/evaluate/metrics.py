"""Ranking metrics of lists of film ids against the held-out films, one value per query, and the mean of a user's.

Ranked lists are what retrieval and the language model write, so the metrics read lists, not score matrices: a held-out
film that a list does not hold counts 0, whether the list is short, or a retriever never found the film.

``METRICS`` is the only place that names them: evaluate measures and compares all of them, and metrics.parquet,
metrics.json, tables, report and MLflow show what evaluate measured.
"""

# Shape letters in this file:
#   U queries (one list each), K first positions of a list

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from tripletune.ndcg import PROMOTION_CUTOFF, BoolArray, FloatArray, IntArray, ndcg

Metric = Callable[[BoolArray, IntArray], FloatArray]
"""From ``hit_UK`` (is the film at this place of the list relevant?) and ``num_relevant_U`` to a float64 per query,
shape (U,); NaN for one with nothing relevant, so that a plain mean shows the mistake."""


def hit_rate(hit_UK: BoolArray, num_relevant_U: IntArray) -> FloatArray:
    """1 for a query with a relevant film among the first K of the list, else 0."""
    return np.where(num_relevant_U > 0, hit_UK.any(axis=1).astype(np.float64), np.nan)


METRICS: Mapping[str, Metric] = {
    "hr": hit_rate,
    "ndcg": ndcg,
}
"""Metrics by the name in front of ``_at_<k>``."""
PROMOTION_METRIC = f"ndcg_at_{PROMOTION_CUTOFF}"
"""What promotion compares; measured whatever the configured cutoffs."""
VALID = "valid_"
"""Before the names of re-ranking metrics on valid examples; without it they are of test examples."""
SHARES = ("hr", "recall")
"""Metrics, without ``_at_<k>``, that are 0 or 1 for a query: their means over users of one query each are shares."""


def metric_names(cutoffs: Sequence[int]) -> list[str]:
    """The columns of ``score_lists``: ``hr_at_<k>``, ``ndcg_at_<k>``, for each cut-off in turn."""
    return [f"{name}_at_{k}" for k in cutoffs for name in METRICS]


def measured_cutoffs(configured: Sequence[int]) -> list[int]:
    """The cut-offs of re-ranking: those configured, and that of the promotion."""
    return sorted({*configured, PROMOTION_CUTOFF})


def is_share_metric(name: str) -> bool:
    """Whether a metric is one of ``SHARES``, of test or valid."""
    return name.removeprefix(VALID).partition("_at_")[0] in SHARES


def score_lists(lists: pl.Series, relevant: pl.Series, cutoffs: Sequence[int]) -> pl.DataFrame:
    """Every metric at every cut-off, one row per list, in one pass over the lists.

    Args:
        lists: List of film ids, best first, without duplicates; may be shorter than a cut-off.
        relevant: held-out films of the same queries, in the same order: one film id each, or a List of them.
        cutoffs: numbers of places that count, each at least 1.

    Returns:
        Columns ``metric_names(cutoffs)``, Float64.

    Raises:
        ValueError: a cut-off is below 1, the lengths differ, an entry is null, or a list names a film twice.
    """
    if min(cutoffs) < 1:
        raise ValueError(f"cut-offs must be at least 1, got {min(cutoffs)}")
    hit_UK, num_relevant_U = _hits(lists, relevant, max(cutoffs))
    columns = [metric(hit_UK[:, :k], num_relevant_U) for k in cutoffs for metric in METRICS.values()]
    return pl.DataFrame(dict(zip(metric_names(cutoffs), columns, strict=True)))


def mean_over_cutoffs(values: pl.DataFrame, key: Sequence[str]) -> pl.DataFrame:
    """A user's value: the mean over the user's held-out cutoffs, so that whatever is done with it is clustered by user.

    Cutoffs of one user are not independent: an interval over queries would be too narrow.

    Args:
        values: one row per query: ``key`` and columns of numbers.
        key: columns that a user's rows share, ``user_id`` among them.

    Returns:
        The same columns, Float64 next to the key, in the order of each key's first row.
    """
    names = [name for name in values.columns if name not in key]
    # a list's mean adds in the order of the rows, on any number of threads; of one row it is the value itself
    listed = values.group_by(key, maintain_order=True).agg(pl.col(names).cast(pl.Float64))
    return listed.with_columns(pl.col(names).list.mean())


def _hits(lists: pl.Series, relevant: pl.Series, k: int) -> tuple[BoolArray, IntArray]:
    """Which of the first ``k`` entries are relevant, shape (U, K), and how many films are, shape (U,)."""
    if len(lists) != len(relevant):
        raise ValueError(f"{len(lists)} lists but {len(relevant)} users' relevant films; both need one per user")
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
    """Refuse nulls and films named twice: a list that repeats a film holds fewer films than places."""
    for column in ("list", "relevant"):
        films = pl.col(column)
        is_null = films.is_null() | films.list.eval(pl.element().is_null()).list.any()
        if (bad := frame.filter(is_null)).height:
            raise ValueError(f"{column} of user number {bad['viewer'][0]} holds a null; every entry must be a film id")
    repeated = frame.filter(pl.col("list").list.n_unique() < pl.col("list").list.len())
    if repeated.height:
        raise ValueError(
            f"the list of user number {repeated['viewer'][0]} names a film twice: {repeated['list'][0].to_list()}"
        )
