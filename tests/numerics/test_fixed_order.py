"""Products and sums are those of torch in float64, and their bytes those of one thread."""

from __future__ import annotations

import pytest
import torch

from tripletune.models.message_passing.fixed_order import COLUMNS, INNER, matmul, total

THREADS = (1, 2, 3, 8)


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
