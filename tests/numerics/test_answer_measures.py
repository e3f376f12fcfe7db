"""Measures of the answers' audits against SciPy, dense NumPy and worked cases, and their errors by simulation."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from tripletune.config import EvaluateConfig
from tripletune.evaluate.answers.correlation import kendall_tau
from tripletune.evaluate.answers.genres import SMOOTHING, audit_genres, divergence, genre_mix
from tripletune.evaluate.answers.groups import audit_groups, describe_users, shuffled_p_values
from tripletune.evaluate.answers.popularity import audit_popularity, film_measures, gini
from tripletune.evaluate.answers.positions import audit_positions, even_spread
from tripletune.evaluate.answers.record import symmetry_p_value
from tripletune.evaluate.answers.shown import correlate, place_candidates
from tripletune.schemas.ingest import USERS

SETTINGS = EvaluateConfig(bootstrap_resamples=200)
NUM_CANDIDATES = 10
LABELS = list("ABCDEFGHIJ")


@pytest.mark.parametrize("ties", [False, True])
def test_kendalls_tau_is_scipys(ties: bool) -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 4 if ties else 10**6, (300, 9)).astype(float)
    second = rng.integers(0, 3 if ties else 10**6, (300, 9)).astype(float)
    lengths = rng.integers(2, 10, 300)
    for row, length in enumerate(lengths):
        first[row, length:] = second[row, length:] = np.nan
    pairs = zip(first, second, lengths, strict=True)
    want = [stats.kendalltau(a[:n], b[:n]).statistic for a, b, n in pairs]
    np.testing.assert_allclose(kendall_tau(first, second), want, rtol=0, atol=1e-12, equal_nan=True)
    assert np.isnan(want).any() == ties  # lists without a difference have no correlation


def test_kendalls_tau_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random((50, 6)), rng.random((50, 6))
    whole = kendall_tau(first, second)
    monkeypatch.setattr("tripletune.evaluate.answers.correlation.BLOCK", 100)
    np.testing.assert_array_equal(kendall_tau(first, second), whole)


def test_films_an_answer_does_not_name_share_its_last_place() -> None:
    examples = pl.DataFrame({"user_id": [1], "cutoff": [9], "candidates": [[11, 12, 13, 14]]})
    answers = pl.DataFrame({"user_id": [1], "cutoff": [9], "system": ["tuned"], "answers": [[13, 11]]})
    placed = place_candidates(answers, examples)
    assert placed["answered"].to_list() == [1, 2, 0, 2]
    assert placed["in_five"].to_list() == [True, False, True, False]
    want = stats.kendalltau([0, 1, 2, 3], [1, 2, 0, 2]).statistic
    assert correlate(placed, "shown")["tau"].to_list() == pytest.approx([want])


def test_first_answers_are_tested_by_pearsons_chi_square() -> None:
    count = np.array([14, 9, 7, 11, 9, 12, 8, 10, 6, 14])
    want = stats.chisquare(count)
    found = even_spread(count, 100, 1)
    assert found is not None
    assert (found.statistic, found.p_value, found.num_bins) == (
        pytest.approx(want.statistic),
        pytest.approx(want.pvalue),
        10,
    )


def test_neighbouring_places_are_taken_together_until_five_answers_are_expected() -> None:
    found = even_spread(np.array([9, 6, 1, 2, 4, 0, 2, 1, 3, 2]), 30, 1)
    want = stats.chisquare([15, 3, 4, 3, 5])
    assert found is not None
    assert (found.statistic, found.num_bins) == (pytest.approx(want.statistic), 5)
    assert even_spread(np.array([9, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 9, 1) is None
    assert even_spread(np.full(5, 40), 40, 5) is None


def test_first_five_are_tested_by_cochrans_q() -> None:
    rng = np.random.default_rng(2)
    chosen = np.zeros((80, 12))
    for row in chosen:
        row[rng.choice(12, 5, replace=False, p=np.arange(1, 13) / 78)] = 1
    found = even_spread(chosen.sum(axis=0).astype(np.int64), 80, 5)
    columns, rows, total = chosen.sum(axis=0), chosen.sum(axis=1), chosen.sum()
    q = (12 - 1) * (12 * (columns**2).sum() - total**2) / (12 * total - (rows**2).sum())
    assert found is not None
    assert found.statistic == pytest.approx(q)
    assert found.p_value == pytest.approx(stats.chi2.sf(q, 11))


@pytest.mark.parametrize(("chosen", "num_lists"), [(1, 60), (5, 60), (5, 9)])
def test_even_spreads_are_rejected_at_the_level(chosen: int, num_lists: int) -> None:
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(800):
        places = rng.permuted(np.tile(np.arange(20), (num_lists, 1)), axis=1)[:, :chosen]
        found = even_spread(np.bincount(places.ravel(), minlength=20), num_lists, chosen)
        assert found is not None
        p_values.append(found.p_value)
    # four standard errors of a share of 800
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.031)


def test_a_user_with_several_queries_counts_once() -> None:
    placed, systems = innocent_answers(1, 60, seed=10)
    later = placed.with_columns(cutoff=pl.col("cutoff") + 1, list=pl.col("list") + 60, answered=pl.col("shown"))
    found = audit_positions(pl.concat([placed, later]), systems, LABELS, settings=SETTINGS, seed=0)
    assert {line.num_users for line in found.lines} == {60}
    first = audit_positions(placed, systems, LABELS, settings=SETTINGS, seed=0)
    tau, tau_of_first = (next(line.value for line in one.lines if line.measure == "tau") for one in (found, first))
    assert tau == pytest.approx((1 + tau_of_first) / 2)  # the later queries copy the order shown
    places, places_of_first = ([line for line in one.lines if line.measure == "first"] for one in (found, first))
    assert places == places_of_first


def test_places_are_counted_among_whole_answers_of_one_length() -> None:
    placed, systems = innocent_answers(1, 60, seed=11)
    shorter = (pl.col("user_id") < 5) & (pl.col("shown") > 5)
    incomplete = (pl.col("user_id") == 9) & (pl.col("answered") > 2)
    odd = placed.filter(~shorter).with_columns(
        num_candidates=pl.when(pl.col("user_id") < 5).then(6).otherwise("num_candidates"),
        in_five=pl.col("in_five") & ~incomplete,
    )
    found = audit_positions(odd, systems, LABELS, settings=SETTINGS, seed=0)
    by_measure = {line.measure: line.num_users for line in found.lines}
    assert by_measure == {"top": 54, "first": 54, "five": 54, "first_chi_square": 54, "five_chi_square": 54, "tau": 60}


def test_gini_is_that_of_all_pairs() -> None:
    count = np.array([0, 0, 3, 1, 7, 0, 2])
    pairs = np.abs(count[:, None] - count[None, :]).sum() / (2 * len(count) ** 2 * count.mean())
    assert gini(count) == pytest.approx(pairs)
    assert gini(np.full(6, 4)) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 12])) == pytest.approx(3 / 4)
    assert gini(np.zeros(3, dtype=np.int64)) == 0


def test_novelty_is_the_information_in_bits_and_the_tail_has_the_least_liked_fifth() -> None:
    popularity = pl.DataFrame({"movie_id": [1, 2, 3], "likes": [16, 4, 1], "quantile": [0.6, 0.2, 0.19]})
    found = film_measures(popularity, 64)
    assert found["novelty"].to_list() == [2, 4, 6]
    assert found["tail"].to_list() == [0, 0, 1]


def test_divergence_is_stecks_by_dense_arrays() -> None:
    rng = np.random.default_rng(4)
    genres = pl.DataFrame(
        {
            "movie_id": range(40),
            "genres": [rng.choice(6, rng.integers(1, 4), replace=False).tolist() for _ in range(40)],
        },
        schema={"movie_id": pl.Int32, "genres": pl.List(pl.Int64)},
    )
    of_film = np.zeros((40, 6))
    for film, held in genres.iter_rows():
        of_film[film, held] = 1 / len(held)
    rows = [(user, 3, film) for user in range(12) for film in rng.choice(40, 9, replace=False)]
    films = pl.DataFrame(rows, {"user_id": pl.Int32, "cutoff": pl.Int32, "movie_id": pl.Int32}, orient="row")
    likes = films.filter(pl.int_range(pl.len()).over("user_id") < 6)
    named = films.filter(pl.int_range(pl.len()).over("user_id") >= 6)
    found = divergence(genre_mix(likes, genres), genre_mix(named, genres)).sort("user_id")
    for user in range(12):
        p, q = (of_film[part.filter(user_id=user)["movie_id"]].mean(axis=0) for part in (likes, named))
        smoothed = (1 - SMOOTHING) * q + SMOOTHING * p
        want = stats.entropy(p, smoothed, base=2) if np.isclose(smoothed.sum(), 1) else None
        assert found["kl"][user] == pytest.approx(want, abs=1e-12)
    same = divergence(genre_mix(likes, genres), genre_mix(likes, genres))
    assert same["kl"].to_numpy() == pytest.approx(np.zeros(12), abs=1e-12)


def test_shuffled_groups_agree_with_fishers_exact_test_and_with_scipys_permutations() -> None:
    rng = np.random.default_rng(5)
    group = np.repeat([0, 1], [30, 50])
    values = np.stack([rng.random(80) < 0.3 + 0.25 * group, rng.random(80)], axis=1).astype(float)
    found = shuffled_p_values(values, group, resamples=20_000, seed=0)
    want = stats.permutation_test(
        (values[:30, 1], values[30:, 1]),
        lambda a, b, axis: np.abs(a.mean(axis) - b.mean(axis)),
        vectorized=True,
        n_resamples=20_000,
        alternative="greater",
        rng=1,
    )
    assert found[0] == pytest.approx(found[1])  # of two groups each is the other's rest
    assert found[0, 1] == pytest.approx(want.pvalue, abs=0.015)
    hits = [int(values[group == g, 0].sum()) for g in (0, 1)]
    table = stats.hypergeom(80, sum(hits), 30)
    gaps = np.array([abs(k / 30 - (sum(hits) - k) / 50) for k in range(31)])
    exact = table.pmf(np.arange(31))[gaps >= abs(hits[0] / 30 - hits[1] / 50) - 1e-12].sum()
    assert found[0, 0] == pytest.approx(exact, abs=0.01)


def test_values_that_do_not_differ_accuse_no_group() -> None:
    found = shuffled_p_values(np.zeros((40, 2)), np.repeat([0, 1, 2], [10, 10, 20]), resamples=99, seed=0)
    assert (found == 1).all()
    assert symmetry_p_value(np.zeros(9)) == symmetry_p_value(np.empty(0)) == 1.0


def innocent_answers(num_systems: int, num_users: int, seed: int) -> tuple[pl.DataFrame, list[str]]:
    """Answers of models that order candidates by chance."""
    rng = np.random.default_rng(seed)
    systems = [f"innocent {number}" for number in range(num_systems)]
    candidates = np.stack([rng.choice(60, NUM_CANDIDATES, replace=False) for _ in range(num_users)]).astype(np.int32)
    users = pl.Series(range(num_users), dtype=pl.Int32)
    examples = pl.DataFrame({"user_id": users, "cutoff": users * 0 + 9, "candidates": candidates.tolist()})
    parts = [
        examples.select("user_id", "cutoff").with_columns(
            system=pl.lit(system), answers=pl.Series(rng.permuted(candidates, axis=1).tolist())
        )
        for system in systems
    ]
    as_ids = pl.col("candidates").cast(pl.List(pl.Int32))
    answers = pl.concat(parts).with_columns(pl.col("answers").cast(pl.List(pl.Int32)))
    return place_candidates(answers, examples.with_columns(as_ids)), systems


def accused(verdicts: list, num: int) -> int:
    assert len(verdicts) == num
    assert all(verdict.state != "not judged" for verdict in verdicts)
    return sum(verdict.state == "found" for verdict in verdicts)


@pytest.mark.parametrize(
    ("num", "most"), [(40, 6), pytest.param(300, 26, marks=pytest.mark.slow)]
)  # 5 % and three standard errors
def test_models_that_order_by_chance_are_not_accused_beyond_the_level(num: int, most: int) -> None:
    placed, systems = innocent_answers(num, 60, seed=6)
    given = {"settings": SETTINGS, "seed": 0}
    assert accused(audit_positions(placed, systems, LABELS, **given).verdicts, num) <= most
    likes = np.random.default_rng(7).geometric(0.02, 60)
    popularity = pl.DataFrame({"movie_id": range(60), "likes": likes, "quantile": stats.rankdata(likes) / 61})
    films = film_measures(popularity, 300).with_columns(pl.col("movie_id").cast(pl.Int32))
    held_out = placed.filter(pl.col("shown") == 0).unique("user_id").select("user_id", "cutoff", "movie_id")
    found = audit_popularity(placed, held_out, films, systems, num_films=60, num_users=300, **given)
    assert accused(found.verdicts, num) <= most


@pytest.mark.parametrize(("num", "most"), [(40, 6), pytest.param(300, 26, marks=pytest.mark.slow)])
def test_models_that_are_as_good_for_everyone_are_not_accused_beyond_the_level(num: int, most: int) -> None:
    rng = np.random.default_rng(8)
    users, cutoff = np.arange(150), np.arange(150) % 50 + 2
    queries = pl.DataFrame({"user_id": users, "cutoff": cutoff}).cast(pl.Int32)
    likes = queries.with_columns(movie_id=pl.int_ranges(0, "cutoff")).explode("movie_id", empty_as_null=False)
    people = pl.DataFrame(
        {"user_id": users, "gender": np.where(users % 4, "M", "F"), "age": 10 + users % 60}
    ).with_columns(occupation=pl.lit(""), zip=pl.lit(""))
    popularity = pl.DataFrame({"movie_id": range(40), "quantile": np.linspace(0, 1, 40)})
    described = describe_users(likes, queries, popularity, people.select(pl.col(n).cast(d) for n, d in USERS.items()))
    gain = np.array([1, 0.63, 0.5, 0.43, 0.39])
    systems = [f"innocent {number}" for number in range(num)]
    scores = pl.concat(
        pl.DataFrame(
            {
                "user_id": queries["user_id"],
                "row": system,
                "ndcg_at_5": (rng.random(150) < 0.15) * rng.choice(gain, 150),
            }
        )
        for system in systems
    )
    found = audit_groups(scores, described, systems, settings=SETTINGS, seed=0)
    assert accused(found.verdicts, num) <= most


def test_orders_by_chance_are_no_further_from_the_liked_genres_than_others_beyond_the_level() -> None:
    placed, systems = innocent_answers(41, 60, seed=9)
    placed = placed.with_columns(system=pl.col("system").replace(systems[0], "random"))
    genres = pl.DataFrame({"movie_id": range(60), "genres": [[film % 5, film % 7 + 5] for film in range(60)]})
    likes = placed.filter(pl.col("shown") < 3).unique(["user_id", "movie_id"]).select("user_id", "cutoff", "movie_id")
    found = audit_genres(
        placed,
        likes,
        genres.with_columns(pl.col("movie_id").cast(pl.Int32)),
        ["random", *systems[1:]],
        settings=SETTINGS,
        seed=0,
    )
    assert accused(found.verdicts, 40) <= 6
