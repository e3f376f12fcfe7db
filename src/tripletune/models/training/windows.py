"""Windows of a user's rows, for training; and its newest rows in padded blocks, for encoding."""

# Shape letters in this file: U users, E rows, R rows of a batch, B users of a batch or block, W rows of a window, L
#   places of a line
from __future__ import annotations

import torch
from torch import Tensor

from tripletune.models.training.interactions import Batch

LENGTH_STEP = 16
"""A user's line is padded to a multiple of this, so that short histories cost little."""


def cut_windows(batch: Batch, value_R: Tensor, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A window of at most ``width`` consecutive rows of each user, at a random place where there are more.

    Args:
        value_R: of each row of the batch.

    Returns:
        ``value_BW`` (oldest first, 0 after the end) and ``length_B``.
    """
    length_B = batch.count_B.clamp(max=width)
    spare_B = batch.count_B - length_B
    start_B = (torch.rand(batch.num_viewers, generator=generator) * (spare_B + 1)).long()
    place_R = batch.place_R - start_B[batch.user_R]
    kept_R = (place_R >= 0) & (place_R < length_B[batch.user_R])
    value_BW = value_R.new_zeros(batch.num_viewers, max(2, int(length_B.max())))
    value_BW[batch.user_R[kept_R], place_R[kept_R]] = value_R[kept_R]
    return value_BW, length_B


def pack_newest(user_E: Tensor, row_E: Tensor, num_viewers: int, max_length: int) -> tuple[Tensor, Tensor]:
    """Pack the newest ``max_length`` rows of each user into lines of one block, oldest first, padded with 0.

    Args:
        user_E: user of each row, int64, ascending.
        row_E: value of each row, int64, such as the row of its film; oldest first within a user.

    Returns:
        ``row_UL`` int64, and ``length_U``, the number of values in each line; L is the largest of them, at least 1.

    Raises:
        ValueError: the users do not ascend.
    """
    if bool((user_E.diff() < 0).any()):
        raise ValueError("rows must be sorted by user, and from the oldest to the newest within one")
    count_U = torch.bincount(user_E, minlength=num_viewers)
    length_U = count_U.clamp(max=max_length)
    place_E = torch.arange(user_E.numel()) - (count_U.cumsum(0) - length_U)[user_E]
    kept_E = place_E >= 0
    row_UL = row_E.new_zeros(num_viewers, max(1, int(length_U.max()) if num_viewers else 1))
    row_UL[user_E[kept_E], place_E[kept_E]] = row_E[kept_E]
    return row_UL, length_U


def padded_blocks(length_U: Tensor, max_length: int, size: int) -> list[tuple[int, Tensor]]:
    """Group users by padded length, so that a user's vector does not depend on the others of its block.

    Args:
        length_U: rows of each user that are used, at most ``max_length``; a user without any is in no block.
        size: users of a block at most; the caller pads every block to as many.

    Returns:
        Padded length and users of each block.
    """
    padded_U = (length_U + LENGTH_STEP - 1).div(LENGTH_STEP, rounding_mode="floor") * LENGTH_STEP
    padded_U = padded_U.clamp(max=max_length)
    return [
        (length, user_B)
        for length in torch.unique(padded_U[length_U > 0]).tolist()
        for user_B in torch.split(torch.nonzero((padded_U == length) & (length_U > 0)).squeeze(1), size)
    ]
