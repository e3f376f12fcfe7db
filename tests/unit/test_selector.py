"""Learning a choice of triples from logged facts: estimators, learners and guards."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from selector_cases import NAMES, NUM_TRIPLES, RELATIONS, make_log

from tripletune.config import SelectorConfig
from tripletune.retrieve.triple_features import FEATURES
from tripletune.selector.guards import entropy, refuse_collapse, refuse_log, refuse_worth, say_choice
from tripletune.selector.learn import fit_policy, fit_rewards
from tripletune.selector.logged import Logged
from tripletune.selector.offpolicy import certain, estimate, uniform
from tripletune.selector.selector import LEARNERS, Judging, cross_fit, learn, personal_scores

SETTINGS = SelectorConfig()
JUDGING = Judging(confidence=0.95, resamples=200, seed=7)


def score(logged: Logged, weight_F: np.ndarray) -> np.ndarray:
    return logged.features_TF @ weight_F


def worth(logged: Logged, expected_T: np.ndarray, weight_F: np.ndarray) -> float:
    """Mean expected reward of a choice."""
    return float(expected_T[logged.best(score(logged, weight_F))].mean())


@pytest.mark.parametrize(
    "model", [(0.0, 0.0, 0.0, 0.0, 0.0), (5.0, -1.0, 2.0, 0.3, 9.0)], ids=["no model", "a wrong one"]
)
def test_the_robust_value_is_unbiased_over_all_logs_that_could_have_been_drawn(model):
    # two films of 2 and 3 triples; every log is enumerated with its probability
    reward_T, policy_T = np.array([1.0, 4.0, -2.0, 0.5, 3.0]), np.array([0.7, 0.3, 0.1, 0.0, 0.9])
    behaviour_T, model_T = np.array([0.1, 0.9, 0.5, 0.25, 0.25]), np.array(model)
    total, weighted = 0.0, 0.0
    for first, second in itertools.product((0, 1), (2, 3, 4)):
        taken_L = np.array([first, second])
        logged = Logged(
            names=NAMES,
            features_TF=np.zeros((5, len(NAMES))),
            count_L=np.array([2, 3]),
            taken_L=taken_L,
            reward_L=reward_T[taken_L],
            propensity_L=behaviour_T[taken_L],
            share_L=np.ones(2),
            user_L=np.array([1, 2]),
        )
        chance = float(behaviour_T[first] * behaviour_T[second])
        total += chance * estimate(logged, policy_T, model_T, clip=100.0).robust_L.mean()
        weighted += chance * float((policy_T[taken_L] / behaviour_T[taken_L] * reward_T[taken_L]).mean())
    truth = float(policy_T @ reward_T) / 2
    assert total == pytest.approx(truth)
    assert weighted == pytest.approx(truth)


def test_a_choice_that_the_log_never_shows_has_no_snips_value_and_no_nan():
    logged, _ = make_log(300)
    others = logged.only(logged.taken_L != logged.best(personal_scores(logged)))
    values = cross_fit(others, SETTINGS, JUDGING)
    assert values["personal"]["snips"] is None
    assert values["random"]["snips"] == pytest.approx(float(others.reward_L.mean()), abs=0.1)


def test_snips_of_a_constant_reward_is_that_reward():
    logged, _ = make_log(300, biased=True)
    constant = dataclasses.replace(logged, reward_L=np.full(len(logged), 3.0))
    assert estimate(constant, uniform(logged), np.zeros(len(logged.features_TF)), clip=20.0).snips == pytest.approx(3.0)


def test_values_of_a_biased_log_are_those_of_the_choices_themselves():
    logged, expected_T = make_log(20_000, biased=True, seed=3)
    wanted_T = logged.column("share of likes")
    nothing_T = np.zeros(len(expected_T))
    for chance_T in (uniform(logged), certain(logged, wanted_T)):
        value = estimate(logged, chance_T, nothing_T, clip=20.0)
        truth = float((chance_T * expected_T).sum() / len(logged))
        assert value.snips == pytest.approx(truth, abs=0.06)
        assert value.robust_L.mean() == pytest.approx(truth, abs=0.06)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("biased", [False, True], ids=["random start", "explored"])
def test_both_learners_find_the_feature_that_helps(learner, biased):
    logged, expected_T = make_log(biased=biased)
    best = float(expected_T.reshape(-1, NUM_TRIPLES).max(axis=1).mean())
    found = worth(*make_log(seed=9), learn(logged, learner, SETTINGS))
    assert found > 0.95 * best


def test_the_regression_is_the_ridge_of_a_dense_solver():
    logged, _ = make_log(60, biased=True)
    model = fit_rewards(logged, ridge=2.0, clip=20.0)
    mean_LF = logged.features_TF.reshape(60, NUM_TRIPLES, -1).mean(axis=1)
    centred_TF = logged.features_TF - np.repeat(mean_LF, NUM_TRIPLES, axis=0)
    deviation_F = np.sqrt((centred_TF**2).mean(axis=0))
    weight_L = 1 / (NUM_TRIPLES * logged.propensity_L)
    weight_L /= weight_L.mean()
    design = np.hstack([np.ones((60, 1)), mean_LF / deviation_F, centred_TF[logged.taken_L] / deviation_F])
    # penalty as rows of data: one for each weight, none for the constant
    rows = np.vstack([design * np.sqrt(weight_L)[:, None], np.sqrt(2.0) * np.eye(design.shape[1])[1:]])
    target = np.append(logged.reward_L * np.sqrt(weight_L), np.zeros(design.shape[1] - 1))
    want = np.linalg.lstsq(rows, target, rcond=None)[0]
    assert model.weight_F == pytest.approx(want[1 + len(NAMES) :], abs=1e-8)


def test_the_policy_gradient_vanishes_where_the_policy_ends():
    logged, _ = make_log(400, noise=1.0)
    weight_F = fit_policy(logged, ridge=50.0, clip=20.0)

    # at the end the penalty balances the gradient: no small step in any feature is better
    def objective(raw_F):
        centred = logged.features_TF.reshape(400, NUM_TRIPLES, -1)
        deviation_F = np.sqrt(((centred - centred.mean(axis=1, keepdims=True)) ** 2).mean(axis=(0, 1)))
        score = (centred @ raw_F) - (centred @ raw_F).max(axis=1, keepdims=True)
        chance = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
        means = np.hstack([np.ones((400, 1)), centred.mean(axis=1) / deviation_F])
        penalty = np.diag([0.0, *[50.0] * (means.shape[1] - 1)])
        baseline = means @ np.linalg.solve(means.T @ means + penalty, means.T @ logged.reward_L)
        advantage = logged.reward_L - baseline
        taken = chance.ravel()[logged.taken_L]
        gain = (NUM_TRIPLES * taken * advantage / advantage.std()).mean()
        return gain - 50.0 / 400 / 2 * ((raw_F * deviation_F) ** 2).sum()

    best = objective(weight_F)
    rng = np.random.default_rng(2)
    assert all(objective(weight_F + rng.normal(0, 0.02, len(NAMES))) < best for _ in range(40))


def test_a_log_is_learned_from_alike_each_time():
    logged, _ = make_log(500, biased=True)
    for learner in LEARNERS:
        assert learn(logged, learner, SETTINGS).tobytes() == learn(logged, learner, SETTINGS).tobytes()


def test_a_rarely_shown_fact_counts_as_much_as_a_common_one_and_ignoring_that_is_seen():
    # the best fact by personal is always useful where it is shown: a regression that ignores propensities fits those
    logged, _ = make_log(4000, biased=True, explored=0.1)
    ignored = dataclasses.replace(logged, propensity_L=np.full(len(logged), 0.9))
    assert refuse_log(logged, SETTINGS) == ""
    assert "propensities are not those of its choices" in refuse_log(ignored, SETTINGS)
    # off-policy, a draw seems worth what was mostly shown, the personal choice
    by_match = dataclasses.replace(logged, reward_L=logged.column("match")[logged.taken_L])
    fooled = dataclasses.replace(by_match, propensity_L=np.full(len(logged), 1 / NUM_TRIPLES))
    nothing_T = np.zeros(len(logged.features_TF))
    right, wrong = (estimate(one, uniform(logged), nothing_T, clip=20.0).snips for one in (by_match, fooled))
    assert right == pytest.approx(0.0, abs=0.1)
    assert wrong > 0.5


def test_the_better_learner_is_judged_on_users_that_it_has_not_seen():
    logged, _ = make_log(1500, useful="shared likes")
    values = cross_fit(logged, SETTINGS, JUDGING)
    assert set(values) == {*LEARNERS, "personal", "random"}
    for learner in LEARNERS:
        assert values[learner]["robust"] > 0.8
        assert values[learner]["minus_personal_low"] > 0.5
    noise, _ = make_log(1500)
    shuffled = dataclasses.replace(noise, reward_L=np.random.default_rng(1).permutation(noise.reward_L))
    for learner in LEARNERS:  # on the users learned from, noise would seem to be worth something
        assert abs(cross_fit(shuffled, SETTINGS, JUDGING)[learner]["robust"]) < 0.12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min_facts": 4000}, "fewer than selector.min_facts"),
        ({"propensity": 1.0}, "not randomised"),
        ({"propensity": 0.8}, "mean 0.31, not 1"),
    ],
)
def test_a_log_that_says_too_little_is_refused(change, words):
    logged, _ = make_log()
    if "propensity" in change:
        logged = dataclasses.replace(logged, propensity_L=np.full(len(logged), change.pop("propensity")))
    assert words in refuse_log(logged, SelectorConfig(**change))
    assert refuse_log(make_log()[0], SETTINGS) == ""


def test_a_collapse_to_few_relations_is_refused():
    even = {"actor": 0.25, "genre": 0.25, "decade": 0.25, "director": 0.25}
    assert entropy(even) == pytest.approx(np.log(4))
    assert refuse_collapse(even, even, SETTINGS) == ""
    narrow = {"actor": 0.95, "genre": 0.05, "decade": 0.0, "director": 0.0}
    assert "entropy of its relations is 0.20 nats" in refuse_collapse(narrow, even, SETTINGS)
    lax = SelectorConfig(min_entropy=0.0)
    assert "95% of its choices are of the relation actor" in refuse_collapse(narrow, even, lax)
    assert refuse_collapse(narrow, narrow, SETTINGS) == ""


def test_a_choice_that_is_no_better_than_a_draw_or_worse_than_personal_is_refused():
    good = {"minus_random": 0.3, "minus_random_low": 0.1, "minus_personal": -0.1, "minus_personal_high": 0.1}
    assert refuse_worth(good) == ""
    assert "not shown to be worth more than a draw: +0.3000 nats a fact, from -0.1000" in refuse_worth(
        good | {"minus_random_low": -0.1}
    )
    assert "from unknown" in refuse_worth(good | {"minus_random_low": None})
    assert "worth less than personal: -0.1000 nats a fact, up to -0.0100" in refuse_worth(
        good | {"minus_personal_high": -0.01}
    )
    noise, _ = make_log(1500)
    shuffled = dataclasses.replace(noise, reward_L=np.random.default_rng(1).permutation(noise.reward_L))
    for value in cross_fit(shuffled, SETTINGS, JUDGING).values():
        assert "draw" in refuse_worth(value)


def test_the_quality_page_says_how_facts_are_chosen():
    refused = say_choice({"refused": "it collapsed"})
    assert refused == "Triples are chosen as under 'personal'; the learned choice is not used: it collapsed."
    used = {"refused": "", "learner": "regression", "logged": {"facts": 2000, "users": 500}}
    assert "by what regression learned from 2,000 facts shown to 500 training users" in say_choice(
        used | {"entropy": {"learned": 1.5, "personal": 1.25}}
    )


def test_the_choice_between_equal_scores_is_the_first():
    logged, _ = make_log(3)
    assert logged.best(np.zeros(3 * NUM_TRIPLES)).tolist() == [0, NUM_TRIPLES, 2 * NUM_TRIPLES]
    kept = logged.only(np.array([True, False, True]))
    assert np.array_equal(kept.features_TF[kept.taken_L], logged.features_TF[logged.taken_L[[0, 2]]])
    assert len(FEATURES) + len(RELATIONS) == kept.features_TF.shape[1]
