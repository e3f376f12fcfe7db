"""Bootstrap intervals against SciPy, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tripletune.evaluate import significance
from tripletune.evaluate.significance import bootstrap_means, is_share, mean_interval, share_interval


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_interval_of_a_mean_is_scipys_with_the_same_seed(confidence: float) -> None:
    values_U = np.random.default_rng(1).random(137) ** 3
    got = mean_interval(values_U, confidence=confidence, resamples=999, seed=5)
    want = stats.bootstrap(
        (values_U,), np.mean, n_resamples=999, confidence_level=confidence, method="percentile", rng=5
    ).confidence_interval
    # the same draws, added up in another order
    np.testing.assert_allclose([got.low, got.high], [want.low, want.high], rtol=1e-12)
    assert got.value == pytest.approx(values_U.mean(), rel=1e-15)


def test_paired_difference_is_scipys_with_the_same_seed() -> None:
    rng = np.random.default_rng(2)
    first_U, second_U = rng.random(90), rng.random(90)

    def difference(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return a.mean(axis=axis) - b.mean(axis=axis)

    got = mean_interval(first_U - second_U, confidence=0.9, resamples=500, seed=3)
    want = stats.bootstrap(
        (first_U, second_U), difference, paired=True, n_resamples=500, confidence_level=0.9, method="percentile", rng=3
    )
    interval = want.confidence_interval
    np.testing.assert_allclose([got.low, got.high], [interval.low, interval.high], rtol=1e-10)
    # the one-sided bound at 90 % is the lower end of the two-sided 80 % interval
    assert got.lower_bound == pytest.approx(np.quantile(want.bootstrap_distribution, 0.1), rel=1e-10)


def test_columns_share_their_resamples() -> None:
    values_UV = np.random.default_rng(4).random((50, 3))
    together_RV = bootstrap_means(values_UV, resamples=200, seed=9)
    for column in range(3):
        alone_R1 = bootstrap_means(values_UV[:, [column]], resamples=200, seed=9)
        np.testing.assert_allclose(together_RV[:, [column]], alone_R1, rtol=1e-14)


def test_blocks_do_not_change_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    values_UV = np.random.default_rng(4).random((50, 2))
    whole_RV = bootstrap_means(values_UV, resamples=101, seed=9)
    monkeypatch.setattr(significance, "BLOCK", 350)  # seven resamples at a time
    assert (bootstrap_means(values_UV, resamples=101, seed=9) == whole_RV).all()


def test_equal_rows_differ_by_exactly_nothing() -> None:
    values_U = np.random.default_rng(0).random(30)
    got = mean_interval(values_U - values_U.copy(), confidence=0.95, resamples=100, seed=0)
    assert (got.value, got.low, got.high, got.lower_bound) == (0.0, 0.0, 0.0, 0.0)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for trial in range(400):
        got = mean_interval((rng.random(80) < 0.3).astype(float), confidence=0.9, resamples=300, seed=trial)
        assert got.low is not None
        assert got.high is not None
        covered += got.low <= 0.3 <= got.high
    # 400 trials at .9: a standard deviation of .015; percentile intervals are a little narrow at 80 users
    assert 0.84 <= covered / 400 <= 0.95


def test_one_viewer_has_no_interval() -> None:
    got = mean_interval(np.array([0.5]), confidence=0.95, resamples=10, seed=0)
    assert (got.value, got.low, got.high, got.lower_bound, got.num_viewers) == (0.5, None, None, None, 1)


def test_values_that_would_spoil_a_mean_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        mean_interval(np.array([0.5, np.nan]), confidence=0.95, resamples=10, seed=0)
    with pytest.raises(ValueError, match="no users"):
        mean_interval(np.array([]), confidence=0.95, resamples=10, seed=0)


def test_two_users_are_enough_for_an_interval() -> None:
    # resamples of the values 0 and 1 have the means 0, 1/2, 1/2 and 1, all equally likely
    got = mean_interval(np.array([0.0, 1.0]), confidence=0.9, resamples=400, seed=0)
    assert (got.value, got.low, got.high, got.lower_bound, got.num_viewers) == (0.5, 0.0, 1.0, 0.0, 2)
    narrow = mean_interval(np.array([0.0, 1.0]), confidence=0.4, resamples=400, seed=0)
    assert (narrow.low, narrow.high, narrow.lower_bound) == (0.5, 0.5, 0.5)


def test_resamples_drawn_in_blocks_are_scipys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "BLOCK", 350)  # seven resamples at a time, and three at the end
    values_U = np.random.default_rng(4).random(50)
    got_R1 = bootstrap_means(values_U[:, None], resamples=101, seed=9)
    want = stats.bootstrap((values_U,), np.mean, n_resamples=101, method="percentile", rng=9)
    np.testing.assert_allclose(got_R1[:, 0], want.bootstrap_distribution, rtol=1e-12)


@pytest.mark.parametrize(("num_users", "most"), [(50, 350), (400, 400)])
def test_no_more_indices_than_a_block_are_drawn_at_a_time(
    monkeypatch: pytest.MonkeyPatch, num_users: int, most: int
) -> None:
    class Counting:
        """A generator that notes how many indices it has drawn at a time."""

        def __init__(self, seed: int) -> None:
            self.generator = np.random.Generator(np.random.PCG64(seed))

        def integers(self, low: int, high: int, size: tuple[int, int]) -> np.ndarray:
            drawn.append(size[0] * size[1])
            return self.generator.integers(low, high, size)

    drawn: list[int] = []
    monkeypatch.setattr(significance, "BLOCK", 350)
    monkeypatch.setattr(np.random, "default_rng", Counting)
    bootstrap_means(np.zeros((num_users, 1)), resamples=20, seed=0)
    assert (max(drawn), sum(drawn)) == (most, 20 * num_users)  # a single resample of many users is never cut


@pytest.mark.parametrize(("hits", "users"), [(0, 20), (1, 20), (7, 20), (20, 20), (34, 150), (1, 2)])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_of_a_share_is_scipys_exact_one(hits: int, users: int, confidence: float) -> None:
    values_U = np.zeros(users)
    values_U[:hits] = 1.0
    found = share_interval(values_U, confidence=confidence)
    exact = stats.binomtest(hits, users).proportion_ci(confidence, method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    one_sided = stats.binomtest(hits, users, alternative="greater").proportion_ci(confidence, method="exact")
    assert found.lower_bound == pytest.approx(one_sided.low, abs=1e-12)
    assert found.value == hits / users


def test_only_zeros_and_ones_are_a_share() -> None:
    assert is_share(np.array([0.0, 1.0]))
    assert not is_share(np.array([0.0, 0.5]))
    assert share_interval(np.ones(1), confidence=0.9).low is None
    for values in ([0.5], [math.nan], []):
        with pytest.raises(ValueError, match="a share needs users"):
            share_interval(np.array(values), confidence=0.9)
