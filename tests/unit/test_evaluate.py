"""The evaluate stage on a small written run, against plain Python."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pytest
from rich.console import Console
from scipy.stats import binomtest
from written_run import UNSEEN, Run, rewrite, write_run

from tripletune.cli.inspect import metrics_tables
from tripletune.config import EvaluateConfig
from tripletune.errors import InputError
from tripletune.evaluate.evaluate import evaluate_run
from tripletune.evaluate.significance import mean_interval
from tripletune.judges import judges
from tripletune.promote.decision import UNTUNED, Reference, Rule, decide_promotion, promotion_scores
from tripletune.schemas.rank import SYSTEMS

SETTINGS = EvaluateConfig(bootstrap_resamples=200)


def evaluate(run: Run, out: Path, settings: EvaluateConfig = SETTINGS) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    trained = {**run.specialists, "finetune": run.finetune}
    return evaluate_run(run.rank, run.generate, run.retrieve, run.split, out, settings, 3, trained, ingest=run.ingest)


def measure(run: Run, out: Path) -> dict[str, Any]:
    """``evaluate`` without the report: two thirds of its time, for tests that read numbers alone."""
    with patch("tripletune.evaluate.evaluate.write_report"):
        return evaluate(run, out)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def out(run: Run) -> Path:
    evaluate(run, run.root / "evaluate")
    return run.root / "evaluate"


@pytest.fixture
def damaged(run: Run, tmp_path: Path) -> Run:
    return run.copy_to(tmp_path / "copy")


def held_out(run: Run, purpose: str) -> dict[int, int]:
    frame = pl.read_parquet(run.generate / purpose / "*.parquet")
    return dict(frame.select("user_id", pl.col("answers").list.first()).iter_rows())


def by_hand(lists: dict[int, list[int]], answers: dict[int, int], k: int) -> tuple[float, float]:
    hits, gains = 0, 0.0
    for user, films in lists.items():
        if answers[user] in films[:k]:
            hits += 1
            gains += 1 / math.log2(films.index(answers[user]) + 2)
    return hits / len(lists), gains / len(lists)


@pytest.mark.parametrize("system", ["random", "retriever", "untuned", "tuned"])
@pytest.mark.parametrize("k", [3, 5])
def test_re_ranking_counts_films_that_retrieval_missed_as_zero(run: Run, out: Path, system: str, k: int) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    predictions = pl.read_parquet(run.rank / "predictions.parquet").filter(
        pl.col("purpose") == "test", pl.col("system") == system, pl.col("constrained")
    )
    lists = dict(predictions.select("user_id", "answers").iter_rows())
    answers = held_out(run, "test")
    assert len(lists) == len(answers)
    hr, ndcg = by_hand(lists, answers, k)
    assert metrics[f"{system}_hr_at_{k}"] == pytest.approx(hr, abs=1e-12)
    assert metrics[f"{system}_ndcg_at_{k}"] == pytest.approx(ndcg, abs=1e-12)


@pytest.mark.parametrize("retriever", ["popularity", "lightgcn", "rgat"])
@pytest.mark.parametrize("group", ["all", "warm", "unseen"])
def test_retrieval_is_measured_for_warm_and_unseen_viewers(run: Run, out: Path, retriever: str, group: str) -> None:
    rankings = pl.read_parquet(run.retrieve / "rankings.parquet").filter(
        pl.col("purpose") == "test", pl.col("retriever") == retriever
    )
    chosen = {"all": pl.lit(True), "warm": ~pl.col("unseen"), "unseen": pl.col("unseen")}[group]
    lists = dict(rankings.filter(chosen).select("user_id", "top").iter_rows())
    _, ndcg = by_hand(lists, held_out(run, "test"), 10)
    line = pl.read_parquet(out / "metrics.parquet").row(
        by_predicate=(pl.col("row") == retriever) & (pl.col("metric") == "ndcg_at_10") & (pl.col("group") == group),
        named=True,
    )
    assert line["value"] == pytest.approx(ndcg, abs=1e-12)
    assert line["num_viewers"] == len(lists)
    assert line["low"] <= line["value"] <= line["high"]
    flat = json.loads((out / "metrics.json").read_text())
    assert flat[f"{retriever}_ndcg_at_10" + ("" if group == "all" else f"_{group}")] == line["value"]


def test_the_ceiling_bounds_every_re_ranking(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["retrieval_ceiling"] == pytest.approx(16 / 24)
    # the tuned system of the fixture names every candidate that is held out
    assert metrics["tuned_hr_at_3"] == metrics["retrieval_ceiling"]


def test_shares_of_valid_answers_are_by_system_and_decoding(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["tuned_valid_answers_constrained"] == 1.0
    assert metrics["tuned_valid_answers_unconstrained"] == 0.5
    assert metrics["untuned_valid_answers_unconstrained"] == 0.5
    assert "random_valid_answers_unconstrained" not in metrics


def test_promotion_reads_the_tuned_model_on_valid_answers(run: Run, out: Path) -> None:
    scores = promotion_scores(out, seed=3)
    users = pl.Series(sorted(run.order))
    judging = users.filter(judges(users, 3))
    assert scores["user_id"].to_list() == judging.to_list()
    assert 0 < len(judging) < len(users)
    frame = pl.read_parquet(out / "per_viewer.parquet").filter(row="tuned", purpose="valid")
    assert scores["ndcg_at_5"].mean() == frame.filter(pl.col("user_id").is_in(judging.implode()))["ndcg_at_5"].mean()
    metrics = json.loads((out / "metrics.json").read_text())
    assert frame["ndcg_at_5"].mean() == pytest.approx(metrics["tuned_valid_ndcg_at_5"])


def test_every_system_is_measured_on_valid_too(run: Run, out: Path) -> None:
    per_viewer = pl.read_parquet(out / "per_viewer.parquet").filter(purpose="valid")
    metrics = pl.read_parquet(out / "metrics.parquet").filter(metric="valid_ndcg_at_10", group="all")
    means = {line["row"]: line["value"] for line in metrics.iter_rows(named=True)}
    assert set(means) == {"random", "retriever", "untuned", "tuned"}
    for row, mean in means.items():
        assert per_viewer.filter(row=row)["ndcg_at_10"].mean() == pytest.approx(mean, abs=1e-12)
        test = pl.read_parquet(out / "metrics.parquet").filter(metric="ndcg_at_10", group="all", row=row)
        assert test["num_viewers"].item() == len(run.order)
    compared = pl.read_parquet(out / "comparisons.parquet").filter(metric="valid_ndcg_at_10", group="all")
    line = compared.row(by_predicate=(pl.col("row_a") == "tuned") & (pl.col("row_b") == "random"), named=True)
    assert line["difference"] == pytest.approx(means["tuned"] - means["random"])


def test_all_pairs_are_compared_on_the_same_viewers(out: Path) -> None:
    comparisons = pl.read_parquet(out / "comparisons.parquet")
    retrieval_pairs, rerank_pairs, groups, purposes = 3, 6, 3, 2
    assert comparisons.height == groups * (retrieval_pairs * 6 + purposes * rerank_pairs * 6)
    metrics = json.loads((out / "metrics.json").read_text())
    line = comparisons.row(
        by_predicate=(pl.col("row_a") == "tuned")
        & (pl.col("row_b") == "retriever")
        & (pl.col("metric") == "hr_at_5")
        & (pl.col("group") == "all"),
        named=True,
    )
    assert line["difference"] == pytest.approx(metrics["tuned_hr_at_5"] - metrics["retriever_hr_at_5"])
    assert line["low"] > 0


def test_per_viewer_values_stand_once_for_each_row(run: Run, out: Path) -> None:
    frame = pl.read_parquet(out / "per_viewer.parquet")
    assert not frame.select("user_id", "purpose", "row").is_duplicated().any()
    assert frame.filter(pl.col("unseen"))["user_id"].unique().sort().to_list() == list(UNSEEN)


def test_a_written_answer_goes_on_with_the_other_candidates_in_the_retrievers_order(run: Run, out: Path) -> None:
    examples = {row["user_id"]: row for row in pl.read_parquet(run.generate / "test" / "*.parquet").to_dicts()}
    predictions = pl.read_parquet(run.rank / "predictions.parquet").filter(purpose="test", system="untuned")
    lists = {
        user: [*named, *(film for film in examples[user]["retrieved"] if film not in named)]
        for user, named in predictions.filter(pl.col("constrained")).select("user_id", "answers").iter_rows()
    }
    assert {len(films) > 5 for films in lists.values()} == {True}
    hr, ndcg = by_hand(lists, held_out(run, "test"), 10)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["untuned_hr_at_10"] == pytest.approx(hr, abs=1e-12)
    assert metrics["untuned_ndcg_at_10"] == pytest.approx(ndcg, abs=1e-12)


@pytest.mark.bytes
def test_the_same_inputs_give_the_same_bytes(run: Run, out: Path, tmp_path: Path) -> None:
    evaluate(run, tmp_path / "again")
    names = sorted(path.name for path in out.iterdir())
    tables = ["answers.parquet", "comparisons.parquet", "metrics.parquet", "per_viewer.parquet"]
    assert names == sorted([*tables, "answers.json", "metrics.json", "report.html"])
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_retrievers_that_a_run_may_have_are_measured_where_they_are(damaged: Run, tmp_path: Path) -> None:
    rewrite(
        damaged.retrieve / "rankings.parquet",
        lambda rows: [*rows, *({**row, "retriever": "ease"} for row in rows if row["retriever"] == "lightgcn")],
    )
    facts = evaluate(damaged, tmp_path / "out")
    assert facts["ease_ndcg_at_10"] == facts["lightgcn_ndcg_at_10"]
    assert not [name for name in facts if name.startswith("ease-plain")]
    frame = pl.read_parquet(tmp_path / "out" / "comparisons.parquet")
    assert {"popularity", "lightgcn", "rgat"} == set(frame.filter(pl.col("row_a") == "ease")["row_b"])
    assert '<th scope="row">ease</th>' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    table = Console(width=200, record=True, file=io.StringIO())
    table.print(metrics_tables(tmp_path / "out", SETTINGS))
    assert "ease " in table.export_text()


def test_a_further_retriever_is_a_row_and_its_training_a_picture_under_its_own_name(run: Run, tmp_path: Path) -> None:
    further = run.copy_to(tmp_path / "copy")
    rewrite(
        further.retrieve / "rankings.parquet",
        lambda rows: [*rows, *({**row, "retriever": "mine"} for row in rows if row["retriever"] == "lightgcn")],
    )
    (tmp_path / "mine").mkdir()
    shutil.copy(further.specialists["lightgcn"] / "curve.parquet", tmp_path / "mine")
    trained = {**further.specialists, "mine": tmp_path / "mine", "finetune": further.finetune}
    (tmp_path / "out").mkdir()
    facts = evaluate_run(
        further.rank,
        further.generate,
        further.retrieve,
        further.split,
        tmp_path / "out",
        SETTINGS,
        3,
        trained,
        ingest=further.ingest,
    )
    assert facts["mine_ndcg_at_10"] == facts["lightgcn_ndcg_at_10"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">mine</th>' in page
    assert "mine: training loss" in page
    assert "finetune: " not in page
    frame = pl.read_parquet(tmp_path / "out" / "comparisons.parquet")
    assert {"popularity", "lightgcn", "rgat"} == set(frame.filter(pl.col("row_a") == "mine")["row_b"])
    table = Console(width=200, record=True, file=io.StringIO())
    table.print(metrics_tables(tmp_path / "out", SETTINGS))
    assert "mine " in table.export_text()


@pytest.mark.parametrize("system", ["random", "retriever", "tuned"])
def test_only_viewers_that_every_system_ranked_are_re_ranked(damaged: Run, tmp_path: Path, system: str) -> None:
    rewrite(
        damaged.rank / "predictions.parquet",
        lambda rows: [row for row in rows if not (row["system"] == system and row["user_id"] > 10)],
    )
    facts = measure(damaged, tmp_path / "out")
    assert facts["rerank_viewers"] == 10
    assert facts["retrieval_viewers"] == 24
    frame = pl.read_parquet(tmp_path / "out" / "metrics.parquet").filter(
        pl.col("metric") == "hr_at_5", pl.col("group") == "all", pl.col("row").is_in(["tuned", "untuned", "random"])
    )
    assert frame["num_viewers"].to_list() == [10] * 3


def untuned_ranks(run: Run, users: Collection[int]) -> Run:
    rewrite(
        run.rank / "predictions.parquet",
        lambda rows: [row for row in rows if row["system"] != "untuned" or row["user_id"] in users],
    )
    return run


def test_the_untuned_model_may_rank_a_part_of_the_users_and_the_others_keep_theirs(
    run: Run, out: Path, damaged: Run, tmp_path: Path
) -> None:
    sample = {2, 3, 7, 8, 9, 12, 20}  # no unseen user
    facts = measure(untuned_ranks(damaged, sample), tmp_path / "out")
    before, after = (pl.read_parquet(folder / "metrics.parquet") for folder in (out, tmp_path / "out"))
    others = pl.col("row") != "untuned"
    assert after.filter(others).equals(before.filter(others))
    lists = pl.read_parquet(run.rank / "predictions.parquet").filter(
        pl.col("user_id").is_in(sample), system="untuned", purpose="test", constrained=True
    )
    hr, ndcg = by_hand(dict(lists.select("user_id", "answers").iter_rows()), held_out(run, "test"), 5)
    assert facts["untuned_hr_at_5"] == pytest.approx(hr, abs=1e-12)
    assert facts["untuned_ndcg_at_5"] == pytest.approx(ndcg, abs=1e-12)
    mine = after.filter(pl.col("metric").str.contains("_at_"), row="untuned")
    assert set(mine.select("group", "num_viewers").iter_rows()) == {("all", 7), ("warm", 7)}


def test_a_part_of_the_users_is_compared_on_these_alone(out: Path, damaged: Run, tmp_path: Path) -> None:
    sample = {2, 3, 7, 8, 9, 12, 20}
    measure(untuned_ranks(damaged, sample), tmp_path / "out")
    before, after = (pl.read_parquet(folder / "comparisons.parquet") for folder in (out, tmp_path / "out"))
    with_it = (pl.col("row_a") == "untuned") | (pl.col("row_b") == "untuned")
    assert after.filter(~with_it).equals(before.filter(~with_it))
    pair = ("row_a", "row_b", "metric")
    seen, wanted = (set(frame.filter(group="all").select(pair).iter_rows()) for frame in (after, before))
    assert seen == wanted
    line = after.filter(with_it).row(
        by_predicate=(pl.col("row_a") == "tuned") & (pl.col("metric") == "ndcg_at_5") & (pl.col("group") == "all"),
        named=True,
    )
    values = pl.read_parquet(tmp_path / "out" / "per_viewer.parquet").filter(purpose="test")
    tuned, untuned = (values.filter(pl.col("user_id").is_in(sample), row=row) for row in ("tuned", "untuned"))
    assert line["num_viewers"] == untuned.height == tuned.height == 7
    gain = tuned.sort("user_id")["ndcg_at_5"] - untuned.sort("user_id")["ndcg_at_5"]
    assert line["difference"] == pytest.approx(gain.mean(), abs=1e-12)
    interval = mean_interval(gain.to_numpy(), confidence=0.95, resamples=200, seed=3)
    assert (line["low"], line["high"]) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_tables_state_the_users_of_a_system_that_ranked_a_part(out: Path, damaged: Run, tmp_path: Path) -> None:
    evaluate(untuned_ranks(damaged, {2, 3, 7, 8, 9, 12, 20}), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert (
        page.count('<th scope="row">untuned <span class="faint">7 users</span></th>') == 2 * 2
    )  # test and valid, all and warm
    assert "untuned ranked the first of the users alone" in page
    assert "ranked the first of the users alone" not in (out / "report.html").read_text(encoding="utf-8")
    table = Console(width=200, record=True, file=io.StringIO())
    table.print(metrics_tables(tmp_path / "out", SETTINGS))
    text = table.export_text()
    assert "re-ranked, 95% interval, 24 test users" in text
    assert "untuned (7 users)" in text
    assert "tuned (24" not in text


def test_the_promotion_compares_with_the_untuned_model_on_the_users_that_it_ranked(
    damaged: Run, tmp_path: Path
) -> None:
    sample = {2, 3, 7, 8, 9, 12, 20}
    measure(untuned_ranks(damaged, sample), tmp_path / "out")
    new, untuned = (promotion_scores(tmp_path / "out", 3, row) for row in ("tuned", "untuned"))
    judging = pl.Series(sorted(sample)).filter(judges(pl.Series(sorted(sample)), 3))
    assert untuned["user_id"].to_list() == judging.to_list()
    worse = new.with_columns(ndcg_at_5=pl.lit(0.0))
    better = untuned.with_columns(ndcg_at_5=pl.lit(1.0))
    rule = Rule(0.0, 0.95, min_users=2, resamples=200, seed=3)
    decision = decide_promotion(worse, [Reference(UNTUNED, better, sampled=True)], rule)
    assert f"over {len(judging)} users" in decision.reason
    assert decision.num_viewers == new.height > len(judging)


def test_a_user_whose_queries_a_sampled_system_ranked_in_part_is_not_measured_for_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", num_viewers=8, unseen=(), held_out=2)
    rewrite(
        run.rank / "predictions.parquet",
        lambda rows: [
            row for row in rows if row["system"] != "untuned" or row["user_id"] != 3 or row["cutoff"] % 2 == 0
        ],
    )
    measure(run, tmp_path / "out")
    frame = pl.read_parquet(tmp_path / "out" / "metrics.parquet").filter(metric="hr_at_5", group="all")
    users = dict(frame.select("row", "num_viewers").iter_rows())
    assert (users["tuned"], users["untuned"]) == (8, 7)


def add_rounded(run: Run, users: dict[str, set[int]]) -> Run:
    """Rows of the tuned model with rounded weights, which orders the candidates the other way round."""

    def rewritten(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tuned = [row for row in rows if row["system"] == "tuned" and row["constrained"]]
        return rows + [
            row | {"system": system, "answers": row["answers"][::-1]}
            for system, ranked in users.items()
            for row in tuned
            if row["user_id"] in ranked
        ]

    rewrite(run.rank / "predictions.parquet", rewritten)
    return run


def test_systems_of_different_parts_of_the_users_are_compared_on_the_smaller(
    run: Run, out: Path, damaged: Run, tmp_path: Path
) -> None:
    parts = {"tuned-int8": {2, 3, 7, 8}, "tuned-nf4": {2, 3}}
    evaluate(untuned_ranks(add_rounded(damaged, parts), {2, 3, 7, 8, 9, 12, 20}), tmp_path / "out")
    frame = pl.read_parquet(tmp_path / "out" / "comparisons.parquet").filter(metric="ndcg_at_5", group="all")
    users = {(a, b): number for a, b, number in frame.select("row_a", "row_b", "num_viewers").iter_rows()}
    assert len(users) == frame.height
    assert len({pair for pair in users if pair[0] in SYSTEMS}) == 6 * 5 // 2
    assert users["tuned", "untuned"] == 7
    assert users["tuned-int8", "tuned"] == users["tuned-int8", "untuned"] == users["tuned-int8", "retriever"] == 4
    assert users["tuned-nf4", "tuned-int8"] == users["tuned-nf4", "untuned"] == users["tuned-nf4", "random"] == 2
    values = pl.read_parquet(tmp_path / "out" / "per_viewer.parquet").filter(purpose="test")
    both = [values.filter(pl.col("user_id").is_in([2, 3, 7, 8]), row=row) for row in ("tuned-int8", "tuned")]
    gain = both[0].sort("user_id")["ndcg_at_5"] - both[1].sort("user_id")["ndcg_at_5"]
    line = frame.row(by_predicate=(pl.col("row_a") == "tuned-int8") & (pl.col("row_b") == "tuned"), named=True)
    assert line["difference"] == pytest.approx(gain.mean(), abs=1e-12) != 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "tuned-int8, tuned-nf4, untuned ranked the first of the users alone" in page
    others = ~pl.col("row").is_in(["untuned", *parts])
    before, after = (pl.read_parquet(folder / "metrics.parquet").filter(others) for folder in (out, tmp_path / "out"))
    assert after.equals(before)


def test_two_systems_of_the_same_part_of_the_users_are_compared_once(damaged: Run, tmp_path: Path) -> None:
    sample = {2, 3, 7, 8}
    measure(untuned_ranks(add_rounded(damaged, {"tuned-int8": sample}), sample), tmp_path / "out")
    frame = pl.read_parquet(tmp_path / "out" / "comparisons.parquet").filter(metric="ndcg_at_5", group="all")
    assert frame.select("row_a", "row_b").is_unique().all()
    assert frame.filter(row_a="tuned-int8", row_b="untuned")["num_viewers"].to_list() == [4]


@pytest.mark.parametrize(("num_viewers", "unseen"), [(6, ()), (1, ()), (2, (2,))])
def test_few_viewers_and_no_unseen_ones_are_measured(tmp_path: Path, num_viewers: int, unseen: tuple[int, ...]) -> None:
    run = write_run(tmp_path / "run", num_viewers=num_viewers, unseen=unseen)
    if num_viewers == 1:  # the other bucket is empty
        for purpose in ("train", "valid", "test"):
            assert pl.read_parquet(run.generate / purpose / "shard-000.parquet").height == 0
    facts = evaluate(run, tmp_path / "out")
    assert ("lightgcn_hr_at_3_unseen" in facts) is bool(unseen)
    metrics = pl.read_parquet(tmp_path / "out" / "metrics.parquet")
    alone = metrics.filter(pl.col("num_viewers") == 1)
    assert alone["low"].null_count() == alone.height
    assert metrics["value"].is_finite().all()
    json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_no_viewers_without_constraint_are_no_row(damaged: Run, tmp_path: Path) -> None:
    rewrite(damaged.rank / "predictions.parquet", lambda rows: [row for row in rows if row["constrained"]])
    assert "tuned_valid_answers_unconstrained" not in evaluate(damaged, tmp_path / "out")


def test_a_missing_system_is_named(damaged: Run, tmp_path: Path) -> None:
    rewrite(damaged.rank / "predictions.parquet", lambda rows: [row for row in rows if row["system"] != "untuned"])
    with pytest.raises(InputError, match="untuned"):
        evaluate(damaged, tmp_path / "out")


def test_predictions_of_other_shards_are_refused(damaged: Run, tmp_path: Path) -> None:
    rewrite(damaged.rank / "predictions.parquet", lambda rows: [{**rows[0], "user_id": 777}, *rows[1:]])
    with pytest.raises(InputError, match="user 777"):
        evaluate(damaged, tmp_path / "out")


def test_a_viewer_answered_twice_is_refused(damaged: Run, tmp_path: Path) -> None:
    rewrite(damaged.rank / "predictions.parquet", lambda rows: [rows[0], *rows])
    with pytest.raises(InputError, match="twice"):
        evaluate(damaged, tmp_path / "out")


def test_a_cutoff_deeper_than_the_lists_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cut-off of 30"):
        evaluate(run, tmp_path / "out", EvaluateConfig().model_copy(update={"retrieval_cutoffs": (30,)}))


def test_a_share_of_users_has_its_exact_interval_and_a_mean_its_bootstrap(out: Path) -> None:
    lines = pl.read_parquet(out / "metrics.parquet").filter(pl.col("group") == "all").to_dicts()
    found = {(line["row"], line["metric"]): line for line in lines}
    for key in (("tuned", "hr_at_5"), ("popularity", "hr_at_10"), ("retrieval", "ceiling")):
        line = found[key]
        hits = round(line["value"] * line["num_viewers"])
        exact = binomtest(hits, line["num_viewers"]).proportion_ci(0.95, method="exact")
        assert (line["low"], line["high"]) == pytest.approx((exact.low, exact.high), abs=1e-12)
    values = pl.read_parquet(out / "per_viewer.parquet").filter(pl.col("row") == "tuned", pl.col("purpose") == "test")
    mean = mean_interval(values.sort("user_id")["ndcg_at_5"].to_numpy(), confidence=0.95, resamples=200, seed=3)
    line = found["tuned", "ndcg_at_5"]
    assert (line["low"], line["high"]) == pytest.approx((mean.low, mean.high), abs=1e-12)
