"""Pooling of a user's vector: the weighted sum of the vectors of the liked films, newest likes heaviest.

Both specialists and the retrieval that reads their vectors compute users here and nowhere else, so that training and
serving agree. There is no user table: a user outside the fit gets a vector like any other.
"""

# Shape letters in this file: M films, D vector width, E rows (one like of one user), U users
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tripletune.threads import one_thread

WHOLE_REGISTERS = 64
"""A multiple of the float32 that any processor's vector instructions take at once, unrolled or not."""


def recency_weights(age_E: Tensor, half_life: float) -> Tensor:
    """Weight ``2 ** (-age / half_life)`` of each row; 1 for every row when ``half_life`` is 0.

    Args:
        age_E: integer, in likes: 0 for a user's newest row, 1 for the one before, and so on.
        half_life: age at which a row counts half, in likes, >= 0.

    Returns:
        Shape (E,), float32 in (0, 1]. Float32 holds ages up to about 140 half-lives; older rows weigh 0.
    """
    if half_life < 0:
        raise ValueError(f"half_life must be 0 (all rows count alike) or more likes, got {half_life}")
    if half_life == 0:
        return torch.ones(age_E.shape, dtype=torch.float32, device=age_E.device)
    # by age, not by row: the last bits of a long column depend on how threads divide it
    oldest = int(age_E.max()) if age_E.numel() else 0
    # padded to whole registers: a remainder is rounded differently, and a user's weights would depend on the oldest
    # like of any other user
    num_ages = (oldest // WHOLE_REGISTERS + 1) * WHOLE_REGISTERS
    with one_thread():  # above 32,768 ages each thread's share would have a remainder
        weight_A = torch.exp2(-torch.arange(num_ages, device=age_E.device).float() / half_life)
    return weight_A[age_E.long()]


def pool_users(
    vectors_MD: Tensor,
    user_E: Tensor,
    row_E: Tensor,
    age_E: Tensor,
    num_viewers: int,
    half_life: float,
    power: float,
) -> Tensor:
    """``u = sum_e w_e vectors[row_e] / (sum_e w_e) ** power`` with the weights of ``recency_weights``.

    ``power`` 1 is the weighted mean, 0 the weighted sum, 0.5 LightGCN's user side of the symmetric normalisation (He
    et al., SIGIR 2020, equation 3). Rows may come in any order; sorted by user they are not sorted again. Nothing of
    the size rows x width is ever held, forward or backward. Differentiable in ``vectors_MD``.

    Args:
        vectors_MD: float32 or float64.
        user_E: user number of each row, int64, 0 <= user < ``num_viewers``.
        row_E: row of ``vectors_MD``, int64.
        age_E: age of each row in likes, newest 0, integer.

    Returns:
        Shape (U, D), in the dtype of ``vectors_MD``; zero for a user without rows.

    Raises:
        ValueError: the three row tensors differ in length, or a user number is out of range.
    """
    if not user_E.shape == row_E.shape == age_E.shape:
        lengths = tuple(user_E.shape), tuple(row_E.shape), tuple(age_E.shape)
        raise ValueError(f"user, row and age must have one entry per like, got shapes {lengths}")
    if user_E.numel() and not 0 <= int(user_E.min()) <= int(user_E.max()) < num_viewers:
        raise ValueError(f"user numbers must be 0..{num_viewers - 1}, got {user_E.min()}..{user_E.max()}")
    if bool((user_E.diff() < 0).any()):
        order_E = user_E.argsort(stable=True)
        user_E, row_E, age_E = user_E[order_E], row_E[order_E], age_E[order_E]
    weight_E = recency_weights(age_E, half_life).to(vectors_MD.dtype)
    count_U = torch.bincount(user_E, minlength=num_viewers)
    offset_U = count_U.cumsum(0) - count_U
    total_U = weight_E.new_zeros(num_viewers).index_add_(0, user_E, weight_E)
    # a row old enough to have weight 0 must not cause a division by 0
    scale_U = total_U.clamp(min=torch.finfo(weight_E.dtype).tiny).pow(-power)
    sum_UD = functional.embedding_bag(row_E, vectors_MD, offset_U, mode="sum", per_sample_weights=weight_E)
    return sum_UD * torch.where(total_U > 0, scale_U, 0.0).unsqueeze(1)
