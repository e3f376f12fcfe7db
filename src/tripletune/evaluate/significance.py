"""Intervals over users: percentile bootstrap of means and of paired differences of means, exact ones of shares;
Holm's correction of p-values.

One set of resampled users serves all columns at once, so every comparison is paired and a full table of rows,
metrics and pairs costs one pass. The indices are drawn as ``scipy.stats.bootstrap`` draws them, so that the same seed
gives the same interval there; SciPy would hold every resampled value, here only counts per user are held.
"""

# Shape letters in this file:
#   U users, V columns (a row's metric), R resamples, B resamples of one block

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

FloatArray = npt.NDArray[np.float64]
BLOCK = 1 << 22
"""Drawn indices held at a time (32 MiB of int64)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean, or a difference of means, with its percentile interval; a share with its exact one.

    ``low`` and ``high`` are None with fewer than two users: one user shows nothing about others. ``lower_bound``
    is the one-sided bound: with the given confidence the true value is above it.
    """

    value: float
    low: float | None
    high: float | None
    lower_bound: float | None
    num_viewers: int


def bootstrap_means(values_UV: FloatArray, *, resamples: int, seed: int) -> FloatArray:
    """Means of each column over users drawn with replacement (Efron & Tibshirani 1993, chapter 6).

    Args:
        values_UV: one row per user; a resample takes whole rows, which keeps the columns paired.
        resamples: how many times U users are drawn.
        seed: of the draw; the same seed and number of users draw the same users.

    Returns:
        Shape (R, V), float64. The same bits on any number of threads.

    Raises:
        ValueError: there is no user, or a value is not finite.
    """
    num_viewers, num_columns = values_UV.shape
    if num_viewers == 0:
        raise ValueError("a mean over no users has no bootstrap")
    if not np.isfinite(values_UV).all():
        raise ValueError("a user's value is NaN or infinite; users with nothing relevant must be dropped")
    rng = np.random.default_rng(seed)
    means_RV = np.empty((resamples, num_columns))
    block = max(1, BLOCK // num_viewers)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn_BU = rng.integers(0, num_viewers, (size, num_viewers))
        drawn_BU += np.arange(size)[:, None] * num_viewers
        counts_BU = np.bincount(drawn_BU.ravel(), minlength=size * num_viewers).reshape(size, num_viewers)
        # einsum without `optimize` adds in one fixed order; a BLAS product's last bits depend on its threads
        means_RV[start : start + size] = np.einsum("bu,uv->bv", counts_BU.astype(np.float64), values_UV) / num_viewers
    return means_RV


def summarise(values_U: FloatArray, means_R: FloatArray, *, confidence: float) -> Interval:
    """The interval of one column from its resampled means (which are not used with fewer than two users)."""
    num_viewers = len(values_U)
    value = float(values_U.mean())
    if num_viewers < 2:
        return Interval(value, None, None, None, num_viewers)
    tail = (1.0 - confidence) / 2
    low, high, bound = np.quantile(means_R, [tail, 1.0 - tail, 1.0 - confidence])
    return Interval(value, float(low), float(high), float(bound), num_viewers)


def mean_interval(values_U: FloatArray, *, confidence: float, resamples: int, seed: int) -> Interval:
    """The mean over users with its interval.

    Raises:
        ValueError: no user, or a value that is not finite.
    """
    means_RV = bootstrap_means(values_U[:, None], resamples=resamples, seed=seed)
    return summarise(values_U, means_RV[:, 0], confidence=confidence)


def is_share(values_U: FloatArray) -> bool:
    """Whether each value is 0 or 1, as of a user with one query; of a user with several it is a mean."""
    return bool(((values_U == 0.0) | (values_U == 1.0)).all())


def share_interval(values_U: FloatArray, *, confidence: float) -> Interval:
    """A share of users with its exact interval (Clopper & Pearson 1934); at 0 and 1 too, where a bootstrap has width 0.

    Args:
        values_U: 0 or 1 for each user.
        confidence: each bound holds with (1 + confidence) / 2, the one-sided ``lower_bound`` with ``confidence``.

    Raises:
        ValueError: no user, or another value.
    """
    num_viewers = len(values_U)
    if num_viewers == 0 or not is_share(values_U):
        raise ValueError("a share needs users, and 0 or 1 for each")
    count = int(values_U.sum())
    share = count / num_viewers
    if num_viewers < 2:
        return Interval(share, None, None, None, num_viewers)

    def lower(tail: float) -> float:
        return float(betaincinv(count, num_viewers - count + 1, tail)) if count else 0.0

    tail = (1.0 - confidence) / 2
    high = float(betaincinv(count + 1, num_viewers - count, 1.0 - tail)) if count < num_viewers else 1.0
    return Interval(share, lower(tail), high, lower(1.0 - confidence), num_viewers)


def holm(p_values: FloatArray) -> FloatArray:
    """P-values adjusted for their number, in the same order (Holm 1979).

    Those at most ``alpha`` are significant together: the chance of one or more false ones is at most ``alpha``, however
    the tests depend on each other.
    """
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
