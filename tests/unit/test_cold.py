"""Warm users, unseen users and cold films, and the table of who is asked, against plain Python."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import small_world
from written_run import CUTOFF, NUM_FILMS, NUM_RATED, UNSEEN, Run, rewrite, write_run

from tripletune.config import EvaluateConfig
from tripletune.evaluate.asked import asked_users
from tripletune.evaluate.cold import known_films, score_by_knowledge
from tripletune.evaluate.evaluate import evaluate_run
from tripletune.evaluate.tables import CEILING_ROW
from tripletune.schemas.split import STARTS

SETTINGS = EvaluateConfig(bootstrap_resamples=100)


def evaluate(run: Run) -> tuple[pl.DataFrame, str]:
    out = run.root / "evaluate"
    out.mkdir()
    trained = {**run.specialists, "finetune": run.finetune}
    evaluate_run(run.rank, run.generate, run.retrieve, run.split, out, SETTINGS, 3, trained, ingest=run.ingest)
    return pl.read_parquet(out / "metrics.parquet"), (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(tmp_path / "run")


def test_a_film_is_known_by_the_ratings_before_the_held_out_likes_of_each_user(run: Run) -> None:
    want = {film for user, films in run.order.items() if user not in UNSEEN for film in films[: CUTOFF["valid"]]}
    assert known_films(run.split).to_list() == sorted(want)
    # a user without a query is read whole, an unseen one not at all
    rewrite(run.split / "shard=001" / "part.parquet", lambda rows: [r for r in rows if r["user_id"] in (3, UNSEEN[0])])
    rewrite(
        run.split / "shard=000" / "part.parquet",
        lambda rows: [{**r, "label": "graph"} for r in rows if r["user_id"] == 4],
    )
    want = {*run.order[3][: CUTOFF["valid"]], *run.order[4][:NUM_RATED]}
    assert known_films(run.split).to_list() == sorted(want)


def test_with_one_date_for_all_users_a_film_is_known_by_the_ratings_before_it(tmp_path: Path) -> None:
    world = small_world.make_world(tmp_path / "world")
    small_world.spread_over_days(world)
    starts = json.loads((world.split / STARTS).read_text())
    (world.split / STARTS).write_text(json.dumps(starts | {"valid": 3 * small_world.DAY}))
    rows = small_world.read_split(world)
    want = {row["movie_id"] for row in rows.to_dicts() if not row["unseen"] and row["timestamp"] < 3 * small_world.DAY}
    assert 5 < len(want) < 55
    assert known_films(world.split).to_list() == sorted(want)


def test_recall_and_the_share_of_cold_films_are_those_counted_by_hand() -> None:
    lists = pl.DataFrame(
        {
            "user_id": [1, 2, 3],
            "unseen": [False, True, False],
            "row": ["x"] * 3,
            "answer": [7, 30, 99],
            "top": [[*range(1, 31)], [*range(10, 31)], [99, 1]],
        }
    )
    candidates = lists.select(
        "user_id", "unseen", "answer", candidates=pl.Series([[7, 8, 98, 99], [1], []], dtype=pl.List(pl.Int64))
    )
    found = score_by_knowledge(lists, candidates, pl.Series(range(1, 16)))
    assert found.filter(row="x").select("is_cold", "recall", "cold_share").rows() == [
        (False, 1.0, pytest.approx(5 / 20)),
        (True, 0.0, pytest.approx(14 / 20)),  # the answer is at place 21
        (True, 1.0, 0.5),
    ]
    assert found.filter(row=CEILING_ROW).select("recall", "cold_share").rows() == [(1.0, 0.5), (0.0, 0.0), (0.0, 0.0)]


def plant_cold_films(run: Run, films: set[int]) -> None:
    """Move these films out of all rows before the valid likes."""
    for shard in (0, 1):
        rewrite(
            run.split / f"shard=00{shard}" / "part.parquet",
            lambda rows: [r for r in rows if r["movie_id"] not in films or r["position"] >= CUTOFF["valid"]],
        )


def test_the_report_has_a_table_for_each_group_also_where_no_list_finds_a_cold_film(run: Run) -> None:
    cold = {run.order[user][CUTOFF["test"]] for user in (1, 2, 3, 5)}
    plant_cold_films(run, cold)
    rewrite(
        run.retrieve / "rankings.parquet",
        lambda rows: [{**r, "top": [film for film in r["top"] if film not in cold]} for r in rows],
    )
    metrics, page = evaluate(run)
    answers = {user: films[CUTOFF["test"]] for user, films in run.order.items()}
    of_cold = {user for user, answer in answers.items() if answer in cold}
    lists = pl.read_parquet(run.retrieve / "rankings.parquet").filter(purpose="test", retriever="rgat")
    top = dict(lists.select("user_id", "top").iter_rows())
    for group, users in (("warm", set(answers) - set(UNSEEN)), ("unseen", set(UNSEEN)), ("cold", of_cold)):
        line = metrics.row(
            by_predicate=(pl.col("row") == "rgat") & (pl.col("group") == group) & (pl.col("metric") == "recall"),
            named=True,
        )
        assert line["num_viewers"] == len(users)
        assert line["value"] == pytest.approx(sum(answers[user] in top[user] for user in users) / len(users))
        assert line["low"] <= line["value"] <= line["high"]
        share = metrics.filter(row="rgat", group=group, metric="cold_share")["value"].item()
        assert share == 0.0
    high = pytest.approx(1 - 0.025 ** (1 / len(of_cold)))  # of no hit at all, exactly
    assert metrics.filter(group="cold", metric="recall").select("row", "value", "low", "high").rows()[:3] == [
        (row, 0.0, 0.0, high) for row in ("popularity", "lightgcn", "rgat")
    ]
    assert metrics.filter(group="cold", metric="cold_share", row="rgat")["high"].item() == 0.0  # no share of users
    assert f"Cold films ({len(of_cold)} users)" in page


def test_a_group_without_a_query_says_so(run: Run) -> None:
    assert len(known_films(run.split)) == NUM_FILMS
    metrics, page = evaluate(run)
    assert "cold" not in metrics["group"]
    assert "Cold films: no query." in page


def test_shares_of_cold_films_are_means_over_users(run: Run) -> None:
    cold = {20, 21, 22}
    plant_cold_films(run, cold)
    metrics, _ = evaluate(run)
    known = set(known_films(run.split).to_list())
    lists = pl.read_parquet(run.retrieve / "rankings.parquet").filter(purpose="test", retriever="lightgcn")
    want = [sum(film not in known for film in row["top"]) / 20 for row in lists.to_dicts() if not row["unseen"]]
    line = metrics.filter(row="lightgcn", group="warm", metric="cold_share")
    assert line["value"].item() == pytest.approx(sum(want) / len(want))
    assert line["value"].item() > 0
    shown = pl.read_parquet(run.generate / "test" / "*.parquet").filter(~pl.col("unseen"))["candidates"].to_list()
    want = [sum(film not in known for film in films) / len(films) for films in shown]
    assert metrics.filter(row=CEILING_ROW, group="warm", metric="cold_share")["value"].item() == pytest.approx(
        sum(want) / len(want)
    )


def state(folder: Path, **facts: object) -> None:
    files = {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size} for path in folder.rglob("*.parquet")}
    manifest = {"facts": facts, "parents": {}, "files": files, "fingerprint": "f"}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_the_table_of_who_is_asked_follows_the_users_from_the_release_to_the_lists(run: Run) -> None:
    assert asked_users(run.split, run.retrieve) is None
    queries = {
        "valid": {"warm": 30, "unseen": 2, "few": 7, "late": 1},
        "test": {"warm": 28, "unseen": 3, "few": 7, "later": 2},
    }
    state(run.split, protocol="global_time", viewers_in=50, viewers=40, queries=queries)
    state(run.retrieve, left_out_known_to_fit={"valid": 6})
    asked = asked_users(run.split, run.retrieve)
    assert asked is not None
    assert asked.protocol == "global_time"
    assert asked.lines == [
        ("users of the release", (50, 50)),
        ("dropped: too few ratings, split.min_interactions", (10, 10)),
        ("dropped: few", (7, 7)),
        ("dropped: late", (1, 0)),
        ("dropped: later", (0, 2)),
        ("warm users with a query", (30, 28)),
        ("unseen users with a query", (2, 3)),
        ("dropped: the fit was trained on the answer", (6, 0)),
        ("warm users ranked", (22, 22)),
        ("unseen users ranked", (2, 2)),
    ]
    _, page = evaluate(run)
    assert '<tr><th scope="row">dropped: later</th><td class="num">0</td><td class="num">2</td></tr>' in page
    assert 'split.protocol = "global_time"' in page


def test_the_report_names_a_model_that_reads_the_time_of_the_request(run: Run) -> None:
    (run.lightgcn / "model.json").write_text('{"request_time": true}')
    _, page = evaluate(run)
    assert "lightgcn reads the time of the request: its lists are for comparison" in page
