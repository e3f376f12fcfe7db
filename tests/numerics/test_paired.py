"""Tests of paired differences against SciPy, exact counts and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tripletune.compare import paired
from tripletune.compare.paired import detectable_difference, sign_flip_p_values, wilcoxon_p_value
from tripletune.evaluate.significance import holm


def sign_flip(differences: np.ndarray, resamples: int = 10_000, seed: int = 1) -> float:
    (found,) = sign_flip_p_values(differences[:, None], resamples=resamples, seed=seed)
    return float(found)


def scipys(differences: np.ndarray, resamples: float) -> float:
    """SciPy's permutation test of one sample of pairs, which flips signs; every combination where ``resamples`` is
    infinite."""
    found = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=resamples, vectorized=True, rng=3
    )
    return float(found.pvalue)


@pytest.mark.parametrize("num_users", [2, 5, 12])
def test_with_few_users_every_combination_of_signs_is_counted_as_scipy_does(num_users: int) -> None:
    rng = np.random.default_rng(num_users)
    for shift in (0.0, 0.4):
        differences = rng.normal(shift, 1, num_users).round(1)  # sums of which many are equal
        assert sign_flip(differences) == pytest.approx(scipys(differences, np.inf), rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.1, 0.2])
def test_drawn_signs_agree_with_scipys_draw_and_with_the_exact_binomial(shift: float) -> None:
    rng = np.random.default_rng(5)
    before, after = rng.random(300) < 0.3, rng.random(300) < 0.3 + shift
    differences = after.astype(float) - before
    got = sign_flip(differences)
    # with differences of -1, 0 and 1 the test is McNemar's: a fair coin for each user who differs
    exact = stats.binomtest(int((differences > 0).sum()), int((differences != 0).sum())).pvalue
    error = 4 * np.sqrt(exact * (1 - exact) / 10_000) + 2e-4
    assert got == pytest.approx(exact, abs=error)
    assert scipys(differences, 10_000) == pytest.approx(got, abs=2 * error)


def test_a_p_value_of_drawn_signs_is_never_zero() -> None:
    assert sign_flip(np.ones(40), resamples=999) == 1 / 1000
    assert sign_flip(np.zeros(40)) == sign_flip(np.array([0.4])) == 1.0


def test_sums_that_differ_by_rounding_alone_are_equal() -> None:
    # 0.1 + 0.2 - 0.3 is 5.6e-17 in one order and 2.8e-17 in another: all four combinations with this size count
    differences = np.array([0.1, 0.2, -0.3])
    assert sign_flip(differences) == 1.0
    assert sign_flip(np.array([0.3, 0.6, -0.9, 0.5])) == pytest.approx(scipys(np.array([3.0, 6, -9, 5]), np.inf))


def test_the_other_way_round_has_the_same_p_values() -> None:
    differences_UV = np.random.default_rng(2).normal(0.1, 1, (80, 3)).round(1)
    there = sign_flip_p_values(differences_UV, resamples=999, seed=4)
    assert (sign_flip_p_values(-differences_UV, resamples=999, seed=4) == there).all()
    assert wilcoxon_p_value(-differences_UV[:, 0]) == wilcoxon_p_value(differences_UV[:, 0])


def test_blocks_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    differences_UV = np.random.default_rng(3).normal(0.1, 1, (40, 2))
    whole = sign_flip_p_values(differences_UV, resamples=1000, seed=4)
    monkeypatch.setattr(paired, "BLOCK", 40 * 64)  # an int8 draw takes whole words of the generator
    assert (sign_flip_p_values(differences_UV, resamples=1000, seed=4) == whole).all()


def test_equal_runs_are_called_different_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(7)
    differences_UV = rng.normal(size=(60, 2000)) * rng.random((60, 1))
    found = sign_flip_p_values(differences_UV, resamples=999, seed=1)
    # 2,000 tests at .05: a standard deviation of .005
    assert (found <= 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_wilcoxons_p_value_is_scipys_without_the_users_who_do_not_differ() -> None:
    differences = np.random.default_rng(8).normal(0.3, 1, 60)
    with_zeros = np.concatenate([differences, np.zeros(30)])
    want = stats.wilcoxon(differences, zero_method="wilcox").pvalue
    assert wilcoxon_p_value(with_zeros) == pytest.approx(want, rel=1e-12)
    assert wilcoxon_p_value(np.zeros(5)) == 1.0
    # by hand: of three ranks all positive, 2 of the 8 combinations of signs are as extreme
    assert wilcoxon_p_value(np.array([0.1, 0.2, 0.3])) == 0.25


def test_sizes_equal_but_for_rounding_share_a_rank() -> None:
    uneven = np.array([0.1 + 0.2, -0.3, 0.6, 0.9, 1.2])
    assert wilcoxon_p_value(uneven) == wilcoxon_p_value(np.array([0.3, -0.3, 0.6, 0.9, 1.2]))


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and no later one is below an earlier one
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.6, 0.5])), [1.0, 1.0])
    np.testing.assert_allclose(holm(np.array([0.04])), [0.04])
    np.testing.assert_allclose(holm(np.array([0.02, 0.02, 0.02])), [0.06, 0.06, 0.06])


def test_holm_rejects_what_stepping_down_rejects() -> None:
    rng = np.random.default_rng(9)
    for _ in range(50):
        p_values = rng.random(12) ** 3
        rejected, remaining = set(), sorted(range(12), key=lambda test: p_values[test])
        while remaining and p_values[remaining[0]] <= 0.05 / len(remaining):
            rejected.add(remaining.pop(0))
        assert set(np.flatnonzero(holm(p_values) <= 0.05)) == rejected


def test_the_detectable_difference_is_seen_in_four_of_five_samples() -> None:
    rng = np.random.default_rng(10)
    spread_U = rng.normal(0, 0.3, 150) * (rng.random(150) < 0.5)
    detectable = detectable_difference(spread_U, confidence=0.95, power=0.8)
    assert detectable is not None
    kept = rng.choice(spread_U - spread_U.mean(), (150, 1500)) + detectable
    found = sign_flip_p_values(kept, resamples=999, seed=1)
    # 1,500 samples: a standard deviation of .01; the test is not quite the normal approximation
    assert (found <= 0.05).mean() == pytest.approx(0.8, abs=0.04)


def test_the_detectable_difference_by_hand() -> None:
    # standard deviation 1 of four users, standard error 1/2, and 1.9600 + 0.8416 of these
    values_U = np.array([1.0, 1.0, -1.0, -1.0]) * np.sqrt(3) / 2
    assert detectable_difference(values_U, confidence=0.95, power=0.8) == pytest.approx(1.4008, abs=1e-4)
    assert detectable_difference(np.zeros(9), confidence=0.95, power=0.8) is None
    assert detectable_difference(np.ones(1), confidence=0.95, power=0.8) is None
