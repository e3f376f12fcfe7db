"""Kendall's tau-b of many short lists at once.

``scipy.stats.kendalltau`` takes one pair of lists and half a millisecond; with a list for each query and system the
loop would take longer than the rest of the stage. The tests compare the two.
"""

# Shape letters in this file:
#   Q lists, C entries of a list, B lists of one block

from __future__ import annotations

import numpy as np

from tripletune.evaluate.significance import BLOCK, FloatArray


def kendall_tau(first_QC: FloatArray, second_QC: FloatArray) -> FloatArray:
    """Rank correlation of two values of the same entries (Kendall 1945), list by list.

    ``(concordant - discordant) / sqrt(pairs not tied in the first * pairs not tied in the second)``.

    Args:
        first_QC, second_QC: NaN where a list has no such entry, in both arrays.

    Returns:
        Shape (Q,), each in [-1, 1]; NaN where one of the two ties all entries.
    """
    num_lists, num_entries = first_QC.shape
    tau_Q = np.full(num_lists, np.nan)
    size = max(1, BLOCK // max(1, num_entries**2))
    for start in range(0, num_lists, size):
        block = slice(start, start + size)
        first_BCC, second_BCC = _signs(first_QC[block]), _signs(second_QC[block])
        agreement_B = (first_BCC * second_BCC).sum(axis=(1, 2))
        untied_B = np.abs(first_BCC).sum(axis=(1, 2)) * np.abs(second_BCC).sum(axis=(1, 2))
        is_defined_B = untied_B > 0
        tau_Q[block] = np.where(is_defined_B, agreement_B / np.sqrt(np.where(is_defined_B, untied_B, 1.0)), np.nan)
    return tau_Q


def _signs(values_BC: FloatArray) -> FloatArray:
    """Sign of the difference of each pair of entries, both ways round; 0 where one of the two is missing."""
    signs_BCC: FloatArray = np.nan_to_num(np.sign(values_BC[:, :, None] - values_BC[:, None, :]))
    return signs_BCC
