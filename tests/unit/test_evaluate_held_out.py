"""Several held-out cutoffs per user: a user's value is the mean over them, and intervals are clustered by user."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_evaluate import SETTINGS, evaluate, measure
from written_run import UNSEEN, Run, rewrite, write_run

from tripletune.errors import InputError
from tripletune.evaluate.cold import known_films
from tripletune.evaluate.metrics import mean_over_cutoffs
from tripletune.judges import judges
from tripletune.promote.decision import promotion_scores
from tripletune.promote.references import _measure

SEED, NUM_CUTOFFS = 3, 3
FEW = {4: 1, 7: 2, 10: 1, 11: 1}
"""Users with fewer test queries than the others: a mean over queries differs from one over users."""
Row = dict[str, Any]
Queries = Mapping[tuple[int, int], float]
"""A value by user and cutoff."""


def keep_queries(run: Run, keep: Callable[[Row], bool]) -> None:
    for path in (*sorted((run.generate / "test").glob("*")), run.rank / "predictions.parquet", rankings(run)):
        rewrite(path, lambda rows: [row for row in rows if row["purpose"] != "test" or keep(row)])


def rankings(run: Run) -> Path:
    return run.retrieve / "rankings.parquet"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = write_run(tmp_path_factory.mktemp("run"), held_out=NUM_CUTOFFS)
    first = run.cutoffs("test")[0]
    keep_queries(run, lambda row: row["cutoff"] - first < FEW.get(row["user_id"], NUM_CUTOFFS))
    # the answer of one query of user 1, and those of all three of user 2, are cold
    cold = {run.order[1][first], *run.order[2][first : first + 3]}
    for shard in (0, 1):
        rewrite(
            run.split / f"shard=00{shard}" / "part.parquet",
            lambda rows: [row for row in rows if row["movie_id"] not in cold or row["position"] >= 12],
        )
    return run


@pytest.fixture(scope="module")
def out(run: Run) -> Path:
    evaluate(run, run.root / "evaluate")
    return run.root / "evaluate"


@pytest.fixture
def damaged(run: Run, tmp_path: Path) -> Run:
    return run.copy_to(tmp_path / "copy")


def answers(run: Run, purpose: str = "test") -> dict[tuple[int, int], int]:
    frame = pl.read_parquet(run.generate / purpose / "*.parquet")
    return {
        (user, cutoff): films[0] for user, cutoff, films in frame.select("user_id", "cutoff", "answers").iter_rows()
    }


def of_users(queries: Queries) -> list[float]:
    """The mean of each user's values."""
    by_user = defaultdict(list)
    for (user, _), value in queries.items():
        by_user[user].append(value)
    return [mean(values) for values in by_user.values()]


def gain(films: list[int], answer: int, k: int) -> float:
    return 1 / math.log2(films.index(answer) + 2) if answer in films[:k] else 0.0


def gains(run: Run, lists: Iterable[tuple[int, int, list[int]]], k: int) -> dict[tuple[int, int], float]:
    wanted = answers(run)
    return {(user, cutoff): gain(films, wanted[user, cutoff], k) for user, cutoff, films in lists}


def ranked(run: Run, system: str) -> dict[tuple[int, int], float]:
    """ndcg_at_3 of a system's constrained answers."""
    rows = pl.read_parquet(run.rank / "predictions.parquet").filter(
        pl.col("constrained"), purpose="test", system=system
    )
    return gains(run, rows.select("user_id", "cutoff", "answers").iter_rows(), 3)


def line(out: Path, row: str, metric: str, group: str = "all") -> Row:
    return pl.read_parquet(out / "metrics.parquet").row(
        by_predicate=(pl.col("row") == row) & (pl.col("metric") == metric) & (pl.col("group") == group), named=True
    )


def test_the_mean_over_a_users_cutoffs_by_hand() -> None:
    values = pl.DataFrame({"user_id": [5, 3, 5, 5], "hit": [True, False, False, True], "gain": [1.0, 0.25, 0.5, 0.0]})
    found = mean_over_cutoffs(values, ("user_id",))
    assert found.rows() == [(5, pytest.approx(2 / 3), 0.5), (3, 0.0, 0.25)]
    assert found.schema == {"user_id": pl.Int64, "hit": pl.Float64, "gain": pl.Float64}
    alone = pl.DataFrame({"user_id": range(50), "gain": np.random.default_rng(1).random(50)})
    assert mean_over_cutoffs(alone, ("user_id",)).equals(alone)  # to the last bit


@pytest.mark.parametrize("system", ["random", "retriever", "untuned", "tuned"])
def test_re_ranking_is_a_mean_over_users_of_the_means_over_their_cutoffs(run: Run, out: Path, system: str) -> None:
    queries = ranked(run, system)
    assert len(queries) == 24 * NUM_CUTOFFS - sum(NUM_CUTOFFS - few for few in FEW.values())
    found = line(out, system, "ndcg_at_3")
    assert found["value"] == pytest.approx(mean(of_users(queries)), abs=1e-12)
    assert found["num_viewers"] == 24
    if system != "random":
        assert found["value"] != pytest.approx(mean(queries.values()), abs=1e-4)


@pytest.mark.parametrize("group", ["all", "warm", "unseen"])
def test_so_is_retrieval(run: Run, out: Path, group: str) -> None:
    rows = pl.read_parquet(rankings(run)).filter(purpose="test", retriever="rgat")
    kept = {"all": pl.lit(True), "warm": ~pl.col("unseen"), "unseen": pl.col("unseen")}[group]
    queries = gains(run, rows.filter(kept).select("user_id", "cutoff", "top").iter_rows(), 10)
    found = line(out, "rgat", "ndcg_at_10", group)
    assert found["value"] == pytest.approx(mean(of_users(queries)), abs=1e-12)
    assert found["num_viewers"] == {"all": 24, "warm": 24 - len(UNSEEN), "unseen": len(UNSEEN)}[group]


def test_the_ceiling_and_valid_answers_are_means_over_users_too(run: Run, out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["retrieval_ceiling"] == pytest.approx(16 / 24)
    assert metrics["tuned_valid_answers_unconstrained"] == pytest.approx(3 / 6)
    rows = pl.read_parquet(run.rank / "predictions.parquet").filter(~pl.col("constrained"), purpose="test")
    assert rows.filter(system="tuned")["valid"].mean() != pytest.approx(3 / 6)  # over queries
    assert metrics["rerank_viewers"] == metrics["retrieval_viewers"] == 24


def test_cold_queries_are_averaged_within_the_user(run: Run, out: Path) -> None:
    known, wanted = set(known_films(run.split).to_list()), answers(run)
    of_cold = {query for query, film in wanted.items() if film not in known}
    counts = [sum(user == one for user, _ in of_cold) for one in {user for user, _ in of_cold}]
    assert len(set(counts)) > 1, "otherwise a mean over queries is the same"
    rows = pl.read_parquet(rankings(run)).filter(purpose="test", retriever="lightgcn")
    tops = {(user, cutoff): top for user, cutoff, top in rows.select("user_id", "cutoff", "top").iter_rows()}
    shares = {query: sum(film not in known for film in tops[query]) / 20 for query in of_cold}
    for metric, values in (
        ("recall", {query: float(wanted[query] in tops[query]) for query in of_cold}),
        ("cold_share", shares),
    ):
        found = line(out, "lightgcn", metric, "cold")
        assert found["value"] == pytest.approx(mean(of_users(values)), abs=1e-12)
        assert found["num_viewers"] == len(counts)
    assert mean(of_users(shares)) != pytest.approx(mean(shares.values()), abs=1e-4)


def clustered(first: Queries, second: Queries) -> tuple[float, float]:
    """Bounds of the mean difference: users are drawn, and each drawn user brings all its queries."""
    differences = defaultdict(list)
    for (user, cutoff), value in first.items():
        differences[user].append(value - second[user, cutoff])
    users = [np.array(differences[user]) for user in sorted(differences)]
    random = np.random.default_rng(SEED)
    means = []
    for drawn in random.integers(0, len(users), (SETTINGS.bootstrap_resamples, len(users))):
        weight = np.concatenate([np.full(len(users[user]), 1 / len(users[user])) for user in drawn])
        means.append(np.average(np.concatenate([users[user] for user in drawn]), weights=weight))
    tail = (1 - SETTINGS.confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def test_intervals_are_those_of_a_cluster_bootstrap(run: Run, out: Path) -> None:
    pairs = pl.read_parquet(out / "comparisons.parquet").filter(metric="ndcg_at_3", group="all")
    for row_a, row_b in (("tuned", "retriever"), ("untuned", "random")):
        found = pairs.filter(row_a=row_a, row_b=row_b).row(0, named=True)
        want = clustered(ranked(run, row_a), ranked(run, row_b))
        assert (found["low"], found["high"]) == pytest.approx(want, abs=1e-12)


def test_cutoffs_taken_for_users_would_narrow_the_interval(run: Run, out: Path, damaged: Run, tmp_path: Path) -> None:
    """The tuned model of the fixture is right or wrong at all cutoffs of a user."""
    keep_queries(damaged, lambda row: row["user_id"] not in FEW)
    honest = measure(damaged, tmp_path / "users") and line(tmp_path / "users", "tuned", "hr_at_3")
    for path in (*(damaged.generate / "test").glob("*"), damaged.rank / "predictions.parquet", rankings(damaged)):
        rewrite(path, lambda rows: [{**row, "user_id": 100 * row["user_id"] + row["cutoff"]} for row in rows])
    for path in (damaged.generate / "valid").glob("*"):
        rewrite(path, lambda rows: [{**row, "user_id": 100 * row["user_id"] + row["cutoff"]} for row in rows])
    measure(damaged, tmp_path / "queries")
    narrow = line(tmp_path / "queries", "tuned", "hr_at_3")
    assert narrow["value"] == pytest.approx(honest["value"])
    assert narrow["num_viewers"] == NUM_CUTOFFS * honest["num_viewers"]
    widths = [found["high"] - found["low"] for found in (narrow, honest)]
    assert widths[0] / widths[1] == pytest.approx(1 / math.sqrt(NUM_CUTOFFS), rel=0.2)


def test_promotion_compares_the_means_of_users(run: Run, out: Path) -> None:
    scores = promotion_scores(out, seed=SEED)
    rows = pl.read_parquet(run.rank / "predictions.parquet").filter(purpose="valid", system="tuned", constrained=True)
    wanted = answers(run, "valid")
    queries = {
        (user, cutoff): gain(films, wanted[user, cutoff], 5)
        for user, cutoff, films in rows.select("user_id", "cutoff", "answers").iter_rows()
    }
    users = pl.Series(sorted(run.order))
    judging = users.filter(judges(users, SEED)).to_list()
    want = {user: mean(value for (one, _), value in queries.items() if one == user) for user in judging}
    assert dict(scores.iter_rows()) == pytest.approx(want)
    examples = pl.read_parquet(run.generate / "valid" / "*.parquet").filter(pl.col("user_id").is_in(judging))
    lists = examples["candidates"]
    measured = _measure(examples, lists)
    assert measured["user_id"].is_unique().all()
    want = defaultdict(list)
    for user, films, answer in zip(examples["user_id"], lists, examples["answers"].list.first(), strict=True):
        want[user].append(gain(films.to_list(), answer, 5))
    assert dict(measured.iter_rows()) == pytest.approx({user: mean(values) for user, values in want.items()})


def test_a_query_that_one_system_did_not_rank_counts_for_none(damaged: Run, tmp_path: Path) -> None:
    last = damaged.cutoffs("test")[-1]
    rewrite(
        damaged.rank / "predictions.parquet",
        lambda rows: [row for row in rows if not (row["system"] == "tuned" and row["cutoff"] == last)],
    )
    facts = measure(damaged, tmp_path / "out")
    queries = {query: value for query, value in ranked(damaged, "retriever").items() if query[1] != last}
    assert facts["retriever_ndcg_at_3"] == pytest.approx(mean(of_users(queries)), abs=1e-12)
    assert facts["rerank_viewers"] == 24


def test_predictions_at_another_cutoff_and_queries_answered_twice_are_refused(damaged: Run, tmp_path: Path) -> None:
    path = damaged.rank / "predictions.parquet"
    rewrite(path, lambda rows: [{**rows[0], "cutoff": 99}, *rows[1:]])
    with pytest.raises(InputError, match="at cutoff 99"):
        evaluate(damaged, tmp_path / "out")
    rewrite(path, lambda rows: [rows[1], *rows[1:]])
    with pytest.raises(InputError, match="twice"):
        evaluate(damaged, tmp_path / "out")


def test_the_report_shows_each_example_with_its_own_answers(run: Run, out: Path) -> None:
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "a user's value is the mean over the user's held-out cutoffs" in page
    parts = page.split('<section id="examples"')[1].split("</section>")[0].split("<h3>")[1:]
    first = run.cutoffs("test")[0]
    assert [part.split()[0] for part in parts] == [f"1:test:{first + place}" for place in range(3)]
    for part in parts:
        assert part.count('<th scope="row">tuned') == 2  # constrained and free
