# Shape letters in this file:
#   U rows (users), B rows of one block, C columns (films or users), K places
"""Exact top-k of every row, in blocks, with masked columns and a fixed order of ties.

Scores are computed block by block, so that nothing of size rows x columns ever exists. Columns must already be in the
order that breaks ties (see ``catalogue.Catalogue``): of equal scores the lower column always wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tripletune.threads import one_thread

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

BLOCK = 64
"""Rows scored at a time: larger blocks fall out of the cache and are slower."""
LEAST_GROUP = 4
"""Columns of a group in ``_some_top_k`` below which grouping is not worth it."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """Integers per row: row ``u`` holds ``values[offsets[u]:offsets[u + 1]]``."""

    offsets: Ints
    values: Ints

    @classmethod
    def from_pairs(cls, row_E: Ints, value_E: Ints, num_rows: int) -> Ragged:
        """Group ``value_E`` by ``row_E`` (any order, 0 <= row < num_rows); the order within a row is kept."""
        order_E = np.argsort(row_E, kind="stable")
        counts_U = np.bincount(row_E, minlength=num_rows)
        return cls(np.concatenate([[0], np.cumsum(counts_U)]).astype(np.int64), value_E[order_E].astype(np.int64))

    def rows(self, chosen_S: Ints) -> Ragged:
        """The chosen rows, in that order."""
        counts_S = np.diff(self.offsets)[chosen_S]
        offsets = np.concatenate([[0], np.cumsum(counts_S)]).astype(np.int64)
        place_E = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts_S)
        return Ragged(offsets, self.values[np.repeat(self.offsets[chosen_S], counts_S) + place_E])

    def block(self, start: int, stop: int) -> tuple[Ints, Ints]:
        """Row numbers within the block, and values, of the rows ``start`` to ``stop``."""
        rows = np.repeat(np.arange(stop - start), np.diff(self.offsets[start : stop + 1]))
        return rows, self.values[self.offsets[start] : self.offsets[stop]]


def top_columns(
    score_block: Callable[[int, int], Tensor], num_rows: int, masked: Ragged, k: int
) -> tuple[Ints, Floats]:
    """The ``k`` best columns of each row that are not masked, best first, ties by the lower column.

    Runs on one thread, so that scores have the same bits for any number of threads; the retrieve stage runs several
    calls at once.

    Args:
        score_block: gives the float scores (stop - start, C) of the rows ``start`` to ``stop``; the tensor is
            overwritten. ``-inf`` marks a column that must never be chosen; NaN is not allowed.
        num_rows: U.
        masked: per row, the columns that must not be chosen; repeated columns do no harm.
        k: places, at least 1.

    Returns:
        ``columns_UK, scores_UK``; where a row has fewer than ``k`` columns left, ``-1`` and ``-inf`` fill the end.
    """
    columns_UK = np.full((num_rows, k), -1, dtype=np.int64)
    scores_UK = np.full((num_rows, k), -np.inf, dtype=np.float32)
    with one_thread():
        for start in range(0, num_rows, BLOCK):
            stop = min(start + BLOCK, num_rows)
            scores_BC = score_block(start, stop)
            row_E, column_E = masked.block(start, stop)
            scores_BC[torch.from_numpy(row_E), torch.from_numpy(column_E)] = -torch.inf
            top_BK, value_BK = _exact_top_k(scores_BC, min(k, scores_BC.shape[1]))
            columns_UK[start:stop, : top_BK.shape[1]] = top_BK.numpy()
            scores_UK[start:stop, : top_BK.shape[1]] = value_BK.numpy()
    return columns_UK, scores_UK


def _exact_top_k(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``torch.topk`` with ties by the lower column, which torch does not specify."""
    has_more = k < scores_BC.shape[1]
    value_BK, top_BK = _some_top_k(scores_BC, k + has_more)
    if has_more:
        # only a tie across the border can put a wrong column in; those rows are computed again, slowly
        last_B = value_BK[:, k - 1]
        tied_B = (last_B == value_BK[:, k]) & (last_B > -torch.inf)
        value_BK, top_BK = value_BK[:, :k], top_BK[:, :k]
        if bool(tied_B.any()):
            scores_TC, last_T1 = scores_BC[tied_B], last_B[tied_B, None]
            above_TC, equal_TC = scores_TC > last_T1, scores_TC == last_T1
            free_T1 = k - above_TC.sum(dim=1, keepdim=True)
            chosen_TC = above_TC | (equal_TC & (equal_TC.cumsum(dim=1) <= free_T1))
            top_BK[tied_B] = chosen_TC.nonzero()[:, 1].view(-1, k)
    top_BK = top_BK.sort(dim=1).values
    value_BK, order_BK = scores_BC.gather(1, top_BK).sort(dim=1, descending=True, stable=True)
    top_BK = top_BK.gather(1, order_BK)
    return top_BK.masked_fill(value_BK == -torch.inf, -1), value_BK


def _some_top_k(scores_BC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``torch.topk`` of wide rows, several times as fast; which of equal scores it takes is as unspecified.

    Columns are dealt to groups of some size. Whatever is among the k best lies in one of the k groups with the highest
    heads, or equals the k-th; so only those groups' columns, and the few that fit no group, are sorted.
    """
    num_columns = scores_BC.shape[1]
    # torch.topk of 64 k columns or more keeps a heap and reads each column once; of fewer it partitions them all
    size = num_columns // (64 * k)
    if size < LEAST_GROUP:
        size = math.isqrt(num_columns // k)
    if size < LEAST_GROUP:
        return scores_BC.topk(k, dim=1)
    num_groups = num_columns // size
    # a group's columns lie num_groups apart: the highest of each are then found in passes over neighbours in memory
    head_BG = scores_BC[:, : size * num_groups].view(-1, size, num_groups).amax(dim=1)
    group_BK = head_BG.topk(k, dim=1, sorted=False).indices
    column_BS = (group_BK.unsqueeze(1) + torch.arange(0, size * num_groups, num_groups).view(-1, 1)).flatten(1)
    rest_BS = torch.arange(size * num_groups, num_columns).expand(len(scores_BC), -1)
    column_BS = torch.cat([column_BS, rest_BS], dim=1)
    value_BK, place_BK = scores_BC.gather(1, column_BS).topk(k, dim=1)
    return value_BK, column_BS.gather(1, place_BK)


def product_blocks(rows_UD: Tensor, columns_CD: Tensor, bias_C: Tensor | None = None) -> Callable[[int, int], Tensor]:
    """``score_block`` for inner products plus a bias per column.

    Every block has the same number of rows (the last is padded), because a matrix product of another shape may round
    differently, and a user's scores must not depend on the other users. Each block overwrites the one before.
    """
    columns_DC = columns_CD.T.contiguous()
    block_BD = rows_UD.new_zeros(BLOCK, rows_UD.shape[1])
    scores_BC = rows_UD.new_empty(BLOCK, len(columns_CD))

    def score_block(start: int, stop: int) -> Tensor:
        block_BD[: stop - start] = rows_UD[start:stop]
        torch.mm(block_BD, columns_DC, out=scores_BC)
        return (scores_BC if bias_C is None else scores_BC.add_(bias_C))[: stop - start]

    return score_block
