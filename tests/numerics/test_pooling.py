"""Users' vectors against a loop over likes in float64."""

from __future__ import annotations

import pytest
import torch

from tripletune.models.serving.pooling import pool_users, recency_weights

VIEWERS = torch.tensor([0, 0, 0, 2, 2, 3])
ROWS = torch.tensor([4, 1, 1, 0, 3, 2])
AGES = torch.tensor([2, 1, 0, 1, 0, 0])
NUM_VIEWERS = 5  # 1 and 4 have no row


def vectors() -> torch.Tensor:
    return torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(vectors_MD: torch.Tensor, half_life: float, power: float) -> torch.Tensor:
    out = torch.zeros(NUM_VIEWERS, vectors_MD.shape[1], dtype=torch.float64)
    for viewer in range(NUM_VIEWERS):
        rows = [(r, a) for v, r, a in zip(VIEWERS.tolist(), ROWS.tolist(), AGES.tolist(), strict=True) if v == viewer]
        total = 0.0
        for row, age in rows:
            weight = 0.5 ** (age / half_life) if half_life else 1.0
            total += weight
            out[viewer] += weight * vectors_MD[row]
        if rows:
            out[viewer] /= total**power
    return out


@pytest.mark.parametrize("half_life", [0.0, 0.7, 10.0])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_pooling_is_the_formula(half_life, power):
    got = pool_users(vectors(), VIEWERS, ROWS, AGES, NUM_VIEWERS, half_life, power)
    # the weights are float32: 2 ** -x to seven digits
    torch.testing.assert_close(got, by_hand(vectors(), half_life, power), rtol=1e-6, atol=1e-7)


def test_order_of_rows_does_not_matter():
    shuffle = torch.tensor([3, 5, 0, 4, 2, 1])
    got = pool_users(vectors(), VIEWERS[shuffle], ROWS[shuffle], AGES[shuffle], NUM_VIEWERS, 2.0, 0.5)
    torch.testing.assert_close(got, by_hand(vectors(), 2.0, 0.5), rtol=1e-6, atol=1e-7)


def test_a_viewer_without_rows_is_zero():
    none = torch.zeros(0, dtype=torch.int64)
    assert pool_users(vectors(), none, none, none, 2, 10.0, 0.5).eq(0).all()
    assert pool_users(vectors(), VIEWERS, ROWS, AGES, NUM_VIEWERS, 10.0, 1.0)[[1, 4]].eq(0).all()


def test_a_viewer_of_rows_too_old_to_weigh_anything_is_finite():
    got = pool_users(vectors(), VIEWERS[:1], ROWS[:1], torch.tensor([10_000]), 1, 1.0, 1.0)
    assert got.isfinite().all()


def test_gradient_is_that_of_finite_differences():
    vectors_MD = vectors().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: pool_users(v, VIEWERS, ROWS, AGES, NUM_VIEWERS, 2.0, 0.5), (vectors_MD,))


def test_float32_and_thread_count():
    generator = torch.Generator().manual_seed(0)
    vectors_MD = torch.randn(300, 64, generator=generator)
    viewer = torch.arange(200).repeat_interleave(50)
    row, age = torch.randint(300, (10_000,), generator=generator), torch.arange(50).flip(0).repeat(200)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = pool_users(vectors_MD, viewer, row, age, 200, 10.0, 0.5)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(alone, pool_users(vectors_MD, viewer, row, age, 200, 10.0, 0.5))
    want = pool_users(vectors_MD.double(), viewer, row, age, 200, 10.0, 0.5)
    torch.testing.assert_close(alone.double(), want, rtol=1e-5, atol=1e-5)


def test_the_weights_of_a_history_longer_than_a_thread_s_share_are_those_of_one_thread():
    before, weights = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        weights.append(recency_weights(torch.arange(70_000), 20_000.0))
    torch.set_num_threads(before)
    assert all(torch.equal(weights[0], many) for many in weights[1:])


@pytest.mark.parametrize(("viewer", "message"), [([0, 1, 9], "0..4, got 0..9"), ([0, 1], "one entry per like")])
def test_wrong_rows_are_refused(viewer, message):
    rows = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=message):
        pool_users(vectors(), torch.tensor(viewer), rows, rows, 5, 0.0, 0.5)
    with pytest.raises(ValueError, match="half_life must be 0"):
        pool_users(vectors(), rows, rows, rows, 5, -1.0, 0.5)
