"""Products and sums are those of torch in float64, and their bytes those of one thread."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from tripletune.models.message_passing import fixed_order
from tripletune.models.message_passing.fixed_order import COLUMNS, INNER, matmul, on_one_thread, total

THREADS = (1, 2, 3, 4, 8)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def by_threads():
    before = torch.get_num_threads()
    yield lambda compute: [(torch.set_num_threads(number), compute())[1] for number in THREADS]
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [0, 1, INNER, INNER + 1, 3000])
@pytest.mark.parametrize("columns", [5, 700])
def test_product_and_gradients_are_torchs(rows, columns):
    left, right, target = randn(rows, 6).double(), randn(6, columns).double(), randn(rows, columns).double()
    results = []
    for product in (matmul, torch.matmul):
        leaves = left.clone().requires_grad_(), right.clone().requires_grad_()
        out = product(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, target)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(0,), (1,), (COLUMNS,), (3, COLUMNS + 1)])
def test_total_is_the_sum(shape):
    values = randn(*shape).double().requires_grad_()
    torch.testing.assert_close(total(values), values.sum())
    torch.testing.assert_close(torch.autograd.grad(total(values), values)[0], torch.ones_like(values))


@pytest.mark.parametrize(("rows", "width"), [(700, 32), (2732, 512), (15_194, 32), (20_001, 64)])
def test_bytes_do_not_depend_on_the_number_of_threads(rows, width, by_threads):
    left, right, target = randn(rows, 32), randn(32, width), randn(rows, width)

    def compute() -> list[torch.Tensor]:
        leaves = left.clone().requires_grad_(), right.clone().requires_grad_()
        out = matmul(*leaves)
        return [out, total(out), *torch.autograd.grad(out, leaves, target)]

    alone, *others = by_threads(compute)
    for many in others:
        assert all(torch.equal(one, other) for one, other in zip(alone, many, strict=True))


# Each gave other bits on two, three or four threads with a plain product, on an AMD processor (Zen 3, AVX2) under all
# settings of tests/cpus.py. A processor on which the library's products do not depend on its threads shows nothing.
FEW_ROWS = [(9, 64, 800), (10, 2, 1875), (26, 15, 21), (6, 359, 903), (3, 12, 431)]
LONG = [(64, 64, 9000), (300, 1024, 700), (70_000, 64, 6), (6, 70_000, 64)]
"""In several blocks: of columns, of rows with an inner dimension in parts, of rows, of the inner dimension."""


def random_shapes(number: int) -> list[tuple[int, int, int]]:
    draw = random.Random(12)
    tops = (300, 1100, 4000)
    return [tuple(int(math.exp(draw.uniform(0, math.log(top)))) for top in tops) for _ in range(number)]


def operand(rows: int, columns: int, turned: bool) -> torch.Tensor:
    return randn(columns, rows).T if turned else randn(rows, columns)


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_products_of_any_shape_and_their_gradients_have_the_bits_of_one_thread(turned, by_threads):
    for rows, inner, columns in (*FEW_ROWS, *LONG, *random_shapes(24)):
        left, right = operand(rows, inner, turned[0]), operand(inner, columns, turned[1])
        target = randn(rows, columns)

        def compute(left=left, right=right, target=target) -> list[torch.Tensor]:
            leaves = left.clone().requires_grad_(), right.clone().requires_grad_()
            out = matmul(*leaves)
            return [out.detach(), *torch.autograd.grad(out, leaves, target)]

        alone, *others = by_threads(compute)
        for many in others:
            for one, other in zip(alone, many, strict=True):
                assert torch.equal(one, other), (rows, inner, columns)
        wanted = left.double() @ right.double(), target.double() @ right.double().T, left.double().T @ target.double()
        for one, want in zip(alone, wanted, strict=True):
            # float32 sums of at most 70,000 products of normal draws
            torch.testing.assert_close(one.double(), want, rtol=1e-4, atol=2e-5 * math.sqrt(rows + inner + columns))


@pytest.mark.parametrize("shape", LONG, ids=str)
def test_the_shape_alone_says_where_blocks_begin(shape, by_threads, monkeypatch):
    rows, inner, columns = shape
    left, right = randn(rows, inner), randn(inner, columns)

    def cut() -> list[tuple[int, ...]]:
        seen = []
        for name, compute in (("mm", torch.mm), ("bmm", torch.bmm)):
            monkeypatch.setattr(
                torch, name, lambda *args, compute=compute, **kw: seen.append(args[0].shape) or compute(*args, **kw)
            )
        fixed_order.product(left, right)
        monkeypatch.undo()
        return sorted(seen)

    alone, *others = by_threads(cut)
    assert len(alone) > 1
    assert all(alone == many for many in others)


@pytest.mark.parametrize("function", [functional.softplus, functional.elu], ids=lambda function: function.__name__)
def test_functions_of_each_value_and_their_gradients_have_the_bits_of_one_thread(function, by_threads):
    values, target = randn(70_001), randn(1, 70_001)[0]

    def compute(call: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        leaf = values.clone().requires_grad_()
        out = call(leaf)
        return [out.detach(), *torch.autograd.grad(out, leaf, target)]

    alone, *others = by_threads(lambda: compute(lambda leaf: on_one_thread(function, leaf)))
    torch.set_num_threads(1)
    for many in (compute(function), *others):
        assert all(torch.equal(one, other) for one, other in zip(alone, many, strict=True))


def test_what_needs_no_gradient_gets_none():
    values = randn(5)
    assert not on_one_thread(functional.elu, values).requires_grad
    with torch.no_grad():
        assert not on_one_thread(functional.elu, values.clone().requires_grad_()).requires_grad
