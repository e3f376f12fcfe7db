"""Sums whose order, and so whose last bits, do not depend on the number of threads.

On a CPU, MKL shares the inner dimension of a product among the threads once it is long (seen from 1,024 on, and with a
small result from 256), and torch shares the sum of a whole tensor. The specialists add everything
else in one order.
"""

# Shape letters in this file: N rows of the result, M its columns, K inner dimension, B blocks
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

INNER = 256
"""Inner dimension of a block: shared among threads nowhere, and as fast as the whole in one product."""
COLUMNS = 1024
"""Of the table that a sum over everything adds up row by row."""


def matmul(left_NK: Tensor, right_KM: Tensor) -> Tensor:
    """``left @ right``, and its gradients, added in one order."""
    product_NM: Tensor = _Matmul.apply(left_NK, right_KM)  # type: ignore[no-untyped-call]
    return product_NM


def total(values: Tensor) -> Tensor:
    """Sum of all values, added in one order; a scalar."""
    flat = values.flatten()
    return functional.pad(flat, (0, -flat.numel() % COLUMNS)).reshape(-1, COLUMNS).sum(dim=0).sum()


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, left_NK: Tensor, right_KM: Tensor) -> Tensor:
        ctx.save_for_backward(left_NK, right_KM)
        return product(left_NK, right_KM)

    @staticmethod
    def backward(ctx: Any, grad_NM: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left_NK, right_KM = ctx.saved_tensors
        of_left = product(grad_NM, right_KM.T) if ctx.needs_input_grad[0] else None
        of_right = product(left_NK.T, grad_NM) if ctx.needs_input_grad[1] else None
        return of_left, of_right


def product(left_NK: Tensor, right_KM: Tensor) -> Tensor:
    """As ``matmul``, without gradients.

    In blocks of the inner dimension; a GPU has no threads that share it, so one product.
    """
    inner = left_NK.shape[1]
    if inner <= INNER or left_NK.device.type != "cpu":
        return left_NK @ right_KM
    blocks = inner // INNER
    whole = blocks * INNER
    left_BNK = left_NK[:, :whole].reshape(-1, blocks, INNER).transpose(0, 1)
    summed_NM = torch.bmm(left_BNK, right_KM[:whole].reshape(blocks, INNER, -1)).sum(dim=0)
    return summed_NM if whole == inner else summed_NM + left_NK[:, whole:] @ right_KM[whole:]
