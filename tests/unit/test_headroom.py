"""The benchmark of what is left for a re-ranker: its fit, its metric, and its page on made-up shards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from tests.benchmark_scripts import benchmark_script
from tests.film_vectors import write_lightgcn
from tripletune.evaluate.metrics import score_lists

with benchmark_script("headroom") as headroom:
    pass
NUM_FILMS, SHOWN, WIDTH = 60, 8, 6


def drawn(seed: int, number: int, slope: float) -> Any:
    """Examples whose answer is drawn by the prior and ``slope`` times the first feature."""
    random = np.random.default_rng(seed)
    prior_EC = np.log(random.dirichlet(np.ones(SHOWN), number))
    feature_ECF = random.normal(size=(number, SHOWN, len(headroom.FEATURES)))
    score_EC = prior_EC + slope * feature_ECF[:, :, 0]
    chances_EC = np.exp(score_EC) / np.exp(score_EC).sum(axis=1, keepdims=True)
    answer_E = [random.choice(SHOWN, p=chances_C) for chances_C in chances_EC]
    return headroom.Examples(
        prior_EC, feature_ECF, np.eye(SHOWN)[answer_E], np.arange(number), np.ones(2 * number, int)
    )


def test_the_fit_finds_the_weights_that_made_the_answers():
    train, test = drawn(1, 4000, 0.7), drawn(2, 2000, 0.7)
    weights, factor = headroom.fit(train, headroom.FEATURES)
    np.testing.assert_allclose(weights, [0.7, *[0.0] * (len(weights) - 1)], atol=0.1)
    assert factor == pytest.approx(1.0, abs=0.1)
    zero = np.zeros(len(weights))
    assert test.loss(weights, factor) < test.loss(zero, 1.0) - 0.05
    few, _ = headroom.fit(train, ("facts",))
    assert np.flatnonzero(few).tolist() == [headroom.FEATURES.index("facts")]
    gain = test.gain(weights, factor)
    assert len(gain) == test.num_users
    assert gain.mean() > 0.02


def test_its_ndcg_is_that_of_the_product():
    examples = drawn(3, 50, 0.0)
    order = np.argsort(-examples.prior_EC, axis=1, kind="stable").tolist()
    answers = [[int(row.argmax())] for row in examples.target_EC]
    wanted = score_lists(pl.Series(order), pl.Series(answers), [headroom.CUTOFF])["ndcg_at_10"].to_numpy()
    np.testing.assert_allclose(examples._ndcg(examples.prior_EC), wanted, rtol=1e-6)


def test_a_users_gain_is_the_mean_over_all_its_examples():
    examples = drawn(4, 3, 0.7)
    weights = np.array([0.7, *[0.0] * (len(headroom.FEATURES) - 1)])
    first, second, third = examples.gain(weights, 1.0)[:3]
    assert first or second
    # the first two are of one user, who has a third example without a hit
    several = replace(examples, user_E=np.array([0, 0, 1]), count_U=np.array([3, 1, 2]))
    np.testing.assert_allclose(several.gain(weights, 1.0), [(first + second) / 3, third, 0.0], rtol=1e-12)


def example(user: int, purpose: str) -> dict[str, object]:
    random = np.random.default_rng([user, len(purpose)])
    films = [int(film) for film in 1 + random.choice(NUM_FILMS, SHOWN + 4, replace=False)]
    shown, liked = films[:SHOWN], films[SHOWN : SHOWN + user % 4]
    return {
        "user_id": user,
        "purpose": purpose,
        "cutoff": 9,
        "candidates": sorted(shown),
        "retrieved": shown,
        "ranking": shown[::-1][:3],
        "similar": shown[:1],
        "liked": liked,
        "answers": [shown[user % 3] if user % 5 else films[-1]],
        "triples": [{"movie_id": shown[0], "relation": "genre"}] * (user % 2),
    }


def test_the_page_has_a_section_by_name_that_is_replaced(tmp_path):
    for purpose in headroom.PURPOSES:
        (tmp_path / "shards" / purpose).mkdir(parents=True)
        rows = pl.DataFrame([example(user, purpose) for user in range(1, 31)])
        rows.write_parquet(tmp_path / "shards" / purpose / "shard-000.parquet")
    films = write_lightgcn(tmp_path / "films", fits={"a": 0, "b": 1}, num_films=NUM_FILMS - 5, width=WIDTH)
    page = tmp_path / "page.md"
    for name in ("one", "two", "one"):
        told = ["--name", name, "--shards", str(tmp_path / "shards"), "--films", f"lightgcn={films}"]
        done = CliRunner().invoke(headroom.app, [*told, "--out", str(page)])
        assert done.exit_code == 0, done.output
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## one", "## two"]
    assert text.count("| all |") == text.count("| nothing |") == 2
    assert "user vector" not in text
    assert "train 24, valid 24, test 24; 30 test users" in text
