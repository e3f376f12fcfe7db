"""Sums in a fixed order: their last bits do not depend on the number of threads.

No library call here is split over threads. MKL splits a product by the number of threads and picks a kernel for each
piece: on AMD processors (seen on Zen 3 and Zen 5) products of 9 x 64 x 800 or 10 x 2 x 1,875 differ between one thread
and two, and long inner dimensions are split everywhere. torch splits the sum of a whole tensor, and in ``softplus``,
``elu`` and ``exp2`` rounds the values at the end of a thread's share differently from the rest. So a large product is
cut into blocks by its shape alone, and each block is computed on one thread.
"""

# Shape letters in this file: N rows of the result, M its columns, K inner dimension, B parts of it
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tripletune.threads import map_blocks, one_thread

INNER = 256
"""Inner dimension of a part; the products of longer ones are added up from parts."""
BLOCK_PRODUCTS = 1 << 24
"""Multiplications in a block, a millisecond on one thread; a thread takes about .05 ms to start."""
LEAST_BLOCK = 64
"""Smallest number of rows or columns of a block."""
COLUMNS = 1024
"""Columns of the table that ``total`` adds up row by row."""


def matmul(left_NK: Tensor, right_KM: Tensor) -> Tensor:
    """``left @ right``, and its gradients, added in one order."""
    product_NM: Tensor = _Matmul.apply(left_NK, right_KM)  # type: ignore[no-untyped-call]
    return product_NM


def total(values: Tensor) -> Tensor:
    """Sum of all values, added in one order; a scalar."""
    flat = values.flatten()
    return functional.pad(flat, (0, -flat.numel() % COLUMNS)).reshape(-1, COLUMNS).sum(dim=0).sum()


def on_one_thread(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """``function(values)`` and its gradient, both computed on one thread."""
    result: Tensor = _OnOneThread.apply(values, function)  # type: ignore[no-untyped-call]
    return result


def product(left_NK: Tensor, right_KM: Tensor) -> Tensor:
    """``matmul`` without gradients; on a GPU, which no CPU threads share, a single call."""
    if left_NK.device.type != "cpu":
        return left_NK @ right_KM
    (rows, inner), columns = left_NK.shape, right_KM.shape[1]
    if rows * inner * columns <= BLOCK_PRODUCTS:
        with one_thread():
            return _product_of_block(left_NK, right_KM)
    if inner > max(rows, columns):
        return _product_over_inner(left_NK, right_KM)
    product_NM = left_NK.new_empty(rows, columns)
    size = max(LEAST_BLOCK, BLOCK_PRODUCTS // (inner * min(rows, columns)) // LEAST_BLOCK * LEAST_BLOCK)

    def compute(block: int) -> None:
        part = slice(block * size, (block + 1) * size)
        if rows >= columns:
            _product_of_block(left_NK[part], right_KM, product_NM[part])
        else:
            _product_of_block(left_NK, right_KM[:, part], product_NM[:, part])

    for _ in map_blocks(compute, math.ceil(max(rows, columns) / size)):
        pass
    return product_NM


def _product_of_block(left_NK: Tensor, right_KM: Tensor, out_NM: Tensor | None = None) -> Tensor:
    """The product on one thread, which the caller must set."""
    if left_NK.shape[1] <= INNER:
        return torch.mm(left_NK, right_KM, out=out_NM)
    left_BNK, right_BKM, rest = _cut_inner(left_NK, right_KM)
    product_NM = _add_up(torch.bmm(left_BNK, right_BKM), *rest)
    return product_NM if out_NM is None else out_NM.copy_(product_NM)


def _product_over_inner(left_NK: Tensor, right_KM: Tensor) -> Tensor:
    """A product whose inner dimension is the longest, as in gradients of weights; a block is a series of its parts."""
    left_BNK, right_BKM, rest = _cut_inner(left_NK, right_KM)
    parts_BNM = left_NK.new_empty(len(left_BNK), left_NK.shape[0], right_KM.shape[1])
    size = max(1, BLOCK_PRODUCTS // (INNER * parts_BNM[0].numel()))

    def compute(block: int) -> None:
        part = slice(block * size, (block + 1) * size)
        torch.bmm(left_BNK[part], right_BKM[part], out=parts_BNM[part])

    for _ in map_blocks(compute, math.ceil(len(left_BNK) / size)):
        pass
    with one_thread():
        return _add_up(parts_BNM, *rest)


def _cut_inner(left_NK: Tensor, right_KM: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Both factors in parts of ``INNER``, and the two factors of the remainder."""
    blocks = left_NK.shape[1] // INNER
    whole = blocks * INNER
    left_BNK = left_NK[:, :whole].reshape(-1, blocks, INNER).transpose(0, 1)
    right_BKM = right_KM[:whole].reshape(blocks, INNER, -1)
    return left_BNK, right_BKM, (left_NK[:, whole:], right_KM[whole:])


def _add_up(parts_BNM: Tensor, left_NK: Tensor, right_KM: Tensor) -> Tensor:
    summed_NM = parts_BNM.sum(dim=0)
    return summed_NM + left_NK @ right_KM if left_NK.shape[1] else summed_NM


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


class _OnOneThread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with one_thread(), torch.enable_grad():
            ctx.values = values.detach().requires_grad_(ctx.needs_input_grad[0])
            ctx.result = function(ctx.values)
        result: Tensor = ctx.result.detach()
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        with one_thread():
            return torch.autograd.grad(ctx.result, ctx.values, grad)[0], None
