"""Tests of paired differences: a randomisation test, Wilcoxon's, and the detectable difference.

All take one difference for each user, so that several questions of a user count as one observation. Each is symmetric:
negated differences have the same p-value, as the signs that are drawn depend on nothing but number and seed.
"""

# Shape letters in this file:
#   U users, V columns (metrics), R resamples, B resamples of one block

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, wilcoxon

from tripletune.evaluate.significance import BLOCK

Floats = npt.NDArray[np.float64]
ROUNDING = 1e-12
"""Share of the sum of all sizes by which sums may differ and count as equal: they were added up in another order."""
DECIMALS = 12
"""Sizes of differences that agree to here are ties for Wilcoxon's ranks."""


def sign_flip_p_values(differences_UV: Floats, *, resamples: int, seed: int) -> Floats:
    """Two-sided p-value of each column's mean under random signs (Fisher 1935; Smucker et al., CIKM 2007).

    If two runs are equally good, which of a user's two values is whose is chance, and so is the sign of the difference.
    With no more than ``resamples`` combinations of signs all are counted, and the p-value is exact; else that many are
    drawn, and the observed one counts as one more (Phipson & Smyth 2010), so that no p-value is 0.

    Args:
        differences_UV: finite; users without any difference change nothing and are dropped.
        resamples: at least 1.
        seed: of the draw; the same signs serve all columns.

    Returns:
        Shape (V,), each in (0, 1]; 1 for a column without differences.
    """
    kept_UV = differences_UV[(differences_UV != 0).any(axis=1)]
    observed_V = np.abs(np.einsum("uv->v", kept_UV)) - ROUNDING * np.abs(kept_UV).sum(axis=0)
    reached_V, number = np.zeros(kept_UV.shape[1], dtype=np.int64), 0
    for sign_BU in _signs(len(kept_UV), resamples, seed):
        # einsum without `optimize` adds in one fixed order, whatever the number of threads
        reached_V += (np.abs(np.einsum("bu,uv->bv", sign_BU, kept_UV)) >= observed_V).sum(axis=0)
        number += len(sign_BU)
    added = 0 if _is_exact(len(kept_UV), resamples) else 1
    p_V: Floats = (reached_V + added) / (number + added)
    return p_V


def _is_exact(num_users: int, resamples: int) -> bool:
    return num_users < 31 and 2**num_users <= resamples


def _signs(num_users: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Blocks of rows of -1 and 1, shape (B, U): every combination once, or ``resamples`` random ones."""
    if _is_exact(num_users, resamples):
        number_R1 = np.arange(2**num_users)[:, None]
        yield 1.0 - 2.0 * ((number_R1 >> np.arange(num_users)) & 1).astype(np.float64)
        return
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK // num_users)
    for start in range(0, resamples, size):
        drawn_BU = rng.integers(0, 2, (min(size, resamples - start), num_users), dtype=np.int8)
        yield 1.0 - 2.0 * drawn_BU.astype(np.float64)


def wilcoxon_p_value(difference_U: Floats) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test by SciPy; users without a difference are dropped (Wilcoxon
    1945). 1 where nobody differs."""
    rounded_U = difference_U.round(DECIMALS)
    rounded_U = rounded_U[rounded_U != 0]
    return float(wilcoxon(rounded_U).pvalue) if len(rounded_U) else 1.0


def detectable_difference(difference_U: Floats, *, confidence: float, power: float) -> float | None:
    """The true difference of means that so many users would show, with this spread of their differences.

    A two-sided test at the level 1 - confidence finds it in the share ``power`` of samples of users, by the normal
    approximation: ``(z(1 - alpha / 2) + z(power)) * sd / sqrt(U)``.

    Returns:
        None with fewer than two users, or where no user differs: then nothing tells the spread.
    """
    if len(difference_U) < 2 or not difference_U.any():
        return None
    needed = norm.ppf(1 - (1 - confidence) / 2) + norm.ppf(power)
    return float(needed * difference_U.std(ddof=1) / np.sqrt(len(difference_U)))
