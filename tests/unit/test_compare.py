"""Comparing runs: what is shared, what is refused, what is found, and its pages."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from tests.page_rules import faults
from tests.unit.compared_runs import values_of, write_compared
from tripletune.cli.main import main
from tripletune.compare.compare import Comparison, compare_runs
from tripletune.compare.pages import FILES, signed
from tripletune.compare.runs import read_scores
from tripletune.errors import InputError, UserError

NUM_USERS = 200


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Run a; b, a little apart from it; c, with a planted gain; all on the same questions."""
    for name, seed, gain in (("a", 1, 0.0), ("b", 2, 0.0), ("c", 1, 0.2)):
        values = {"test": values_of(NUM_USERS, seed, gain), "valid": values_of(NUM_USERS, seed + 10, gain)}
        write_compared(tmp_path, name, values, config={"seed": 7, "rank": {"batch_size": 8 + seed}})
    return tmp_path


def compared(store: Path, *names: str, row: str = "", baseline: str = "", metrics: tuple[str, ...] = ()) -> Comparison:
    runs = [read_scores(name, store, row) for name in names]
    return compare_runs(runs, baseline, metrics=metrics, confidence=0.95, resamples=2000)


def by_test(found: Comparison) -> dict[tuple[str, str, str], dict]:
    return {(line.run, line.purpose, line.metric): asdict(line) for line in found.lines}


def test_a_planted_gain_is_found_and_equal_runs_are_not(store):
    verdicts = {key: line["verdict"] for key, line in by_test(compared(store, "a", "b", "c")).items()}
    assert len(verdicts) == 8
    assert {verdict for (run, _, _), verdict in verdicts.items() if run == "b"} == {"no difference shown"}
    assert {verdict for (run, _, _), verdict in verdicts.items() if run == "c"} == {"better"}
    assert {line.verdict for line in compared(store, "c", "a").lines} == {"worse"}


def test_numbers_are_those_of_the_users_values(store):
    line = by_test(compared(store, "a", "c"))["c", "test", "ndcg_at_5"]
    before, after = values_of(NUM_USERS, 1), values_of(NUM_USERS, 1, 0.2)
    assert (line["baseline_mean"], line["mean"]) == pytest.approx((before.mean(), after.mean()))
    assert line["difference"] == pytest.approx((after - before).mean())
    assert (line["num_users"], line["num_differing"]) == (NUM_USERS, int((after != before).sum()))
    assert line["low"] < line["difference"] < line["high"]
    assert line["p_wilcoxon"] == pytest.approx(stats.wilcoxon((after - before)[after != before]).pvalue)
    assert line["p_value"] == 1 / 2001
    assert line["p_adjusted"] == pytest.approx(4 / 2001)


def test_the_other_way_round_differences_are_negated_and_p_values_the_same(store):
    there, back = compared(store, "a", "b", "c"), compared(store, "b", "a", "c")
    one, other = by_test(there), by_test(back)
    for purpose in ("test", "valid"):
        for metric in ("hr_at_5", "ndcg_at_5"):
            mine, theirs = one["b", purpose, metric], other["a", purpose, metric]
            assert mine["difference"] == -theirs["difference"] != 0
            assert (mine["low"], mine["high"]) == pytest.approx((-theirs["high"], -theirs["low"]), abs=1e-15)
            same = ("p_value", "p_wilcoxon", "detectable", "num_differing")
            assert [mine[name] for name in same] == [theirs[name] for name in same]
    # of the same pairs the corrected ones agree too, and by --baseline as by order
    assert by_test(compared(store, "b", "c", "a", baseline="a")) == by_test(compared(store, "a", "b", "c"))


def test_the_family_is_every_line_and_is_stated(store):
    found = compared(store, "a", "b", "c")
    assert found.family["num_tests"] == len(found.lines) == 8
    assert found.family["pairs"] == ["b (tuned) against a (tuned)", "c (tuned) against a (tuned)"]
    assert found.family["said"] == (
        "8 tests, 2 pairs of runs by metric (test: hr_at_5, ndcg_at_5; valid: hr_at_5, ndcg_at_5)"
    )
    small = compared(store, "a", "c", metrics=("ndcg_at_5",))
    assert [line.metric for line in small.lines] == ["ndcg_at_5"] * 2
    assert small.lines[0].p_adjusted == pytest.approx(2 / 2001)


def test_a_run_is_compared_by_what_it_serves_or_by_the_named_row(store):
    values = {"test": values_of(NUM_USERS, 3), "valid": values_of(NUM_USERS, 4)}
    write_compared(store, "fused", values, rows=("retriever", "tuned", "tuned+retriever"))
    assert [run["row"] for run in compared(store, "a", "fused").runs] == ["tuned", "tuned+retriever"]
    found = compared(store, "a", "fused", row="retriever")
    assert {line.p_value for line in found.lines} == {1.0}
    assert {line.detectable for line in found.lines} == {None}
    with pytest.raises(UserError, match=r"run a has no row 'fusd'.*--row: retriever, tuned"):
        compared(store, "a", "fused", row="fusd")


def test_users_asked_otherwise_in_one_run_are_dropped(store):
    write_compared(store, "later", {"test": values_of(120, 5), "valid": values_of(90, 5)}, first_user=51)
    found = compared(store, "a", "later")
    shared = {one.purpose: (one.num_users, one.num_questions, one.users_of_runs) for one in found.shared}
    assert shared == {"test": (120, 120, [200, 120]), "valid": (90, 90, [200, 90])}
    line = by_test(found)["later", "test", "ndcg_at_5"]
    assert line["baseline_mean"] == pytest.approx(values_of(NUM_USERS, 1)[50:170].mean())
    assert line["num_users"] == 120


def test_a_purpose_without_shared_questions_is_no_part_of_the_family(store):
    write_compared(store, "test-only", {"test": values_of(NUM_USERS, 5)})
    found = compared(store, "a", "test-only")
    assert [one.purpose for one in found.shared] == ["test"]
    assert {line.purpose for line in found.lines} == {"test"}


def test_users_of_several_questions_are_one_observation_each(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write_compared(tmp_path, name, {"test": values_of(50, seed)}, held_out=3, config={"split": {"held_out": 3}})
    found = compared(tmp_path, "a", "b")
    assert [(one.num_users, one.num_questions) for one in found.shared] == [(50, 150)]
    assert {line.num_users for line in found.lines} == {50}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"dataset": "other", "files": {"movielens/ratings.csv": "b" * 64}}, r"other dataset \(ml, other\)"),
        ({"config": {"split": {"protocol": "ratio"}}, "shift": 3}, r"other split \(split.protocol 'leave_one_out' ag"),
        ({"config": {"split": {"held_out": 2}}, "held_out": 2}, r"other split \(split.held_out 1 against 2\)"),
        ({"shift": 1}, r"other cutoffs: 200 users are in both"),
        ({"first_user": 900}, r"other users are in the rows tuned and tuned"),
    ],
)
def test_runs_that_share_no_questions_are_refused_with_the_reason(store, other, reason, capsys):
    write_compared(store, "other", {"test": values_of(NUM_USERS, 5), "valid": values_of(NUM_USERS, 6)}, **other)
    with pytest.raises(InputError, match=rf"^a and other share no questions: {reason}"):
        compared(store, "a", "b", "other")
    assert main(["compare", "a", "other", "--artifacts", str(store)]) == 2
    error = capsys.readouterr().err
    assert re.match(rf"tripletune: a and other share no questions: {reason}", error)
    assert error.count("\n") == 1


def test_two_synthetic_releases_are_other_datasets_though_their_ids_agree(tmp_path):
    for name, seed in (("a", 1), ("b", 2), ("again", 1)):
        write_compared(tmp_path, name, {"test": values_of(50, seed)}, files={}, config={"seed": seed})
    with pytest.raises(InputError, match=r"other dataset, two synthetic releases \(seed 1 against 2\)"):
        compared(tmp_path, "a", "b")


def test_a_release_that_grew_is_compared_on_the_questions_that_stayed(store):
    values = {"test": values_of(NUM_USERS, 5)}
    write_compared(store, "grown", values, files={"movielens/ratings.csv": "b" * 64})
    assert compared(store, "a", "grown").shared[0].num_users == NUM_USERS


def test_one_release_under_two_names_is_compared(store):
    write_compared(store, "renamed", {"test": values_of(NUM_USERS, 5)}, dataset="renamed")
    assert compared(store, "a", "renamed").shared[0].num_users == NUM_USERS


def test_what_differs_between_the_runs_is_listed_with_the_cause(store):
    config = {"seed": 7, "prompt": {"max_liked": 9}}
    values = {"test": values_of(NUM_USERS, 5)}
    write_compared(store, "other", values, files={"movielens/ratings.csv": "b" * 64}, config=config)
    found = compared(store, "a", "other")
    settings = {one.name: one.values for one in found.settings}
    default = json.loads((store / "runs/a.json").read_text())["config"]
    assert settings["prompt.max_liked"] == [str(default["prompt"]["max_liked"]), "9"]
    assert set(settings) == {"prompt.max_liked", "rank.batch_size"}
    assert [(one.name, one.values) for one in found.inputs] == [("movielens/ratings.csv", ["a" * 10, "b" * 10])]
    assert {one.name: one.because for one in found.stages} == {
        "ingest": "inputs movielens/ratings.csv",
        "split": "outputs of ingest",
        "generate": "settings max_liked; outputs of split",
        "evaluate": "outputs of generate",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "compare needs two runs or more: tripletune compare RUN RUN"),
        (["a", "a"], "run a is named twice; a run does not differ from itself"),
        (["a", "b", "--baseline", "c"], "--baseline 'c' is none of the compared runs: a, b"),
        (
            ["a", "b", "--metric", "mrr"],
            "--metric 'mrr' was not measured by every run; all measured hr_at_5, ndcg_at_5",
        ),
        (["a", "zz"], "no run 'zz' in"),
    ],
)
def test_wrong_calls_end_in_one_line(store, arguments, message, capsys):
    assert main(["compare", *arguments, "--artifacts", str(store)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tripletune: {message}")
    assert error.count("\n") == 1


def test_a_run_that_was_not_evaluated_is_named(store, capsys):
    record = write_compared(store, "half", {"test": values_of(NUM_USERS, 5)})
    (record.paths(store).folder("evaluate") / "manifest.json").unlink()
    assert main(["compare", "a", "half", "--artifacts", str(store)]) == 2
    assert "tripletune: run half is completed and has no finished 'evaluate' output in" in capsys.readouterr().err


def test_a_run_of_another_root_is_named_with_its_root(store, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_compared(elsewhere, "a", {"test": values_of(NUM_USERS, 1)})
    found = compared(store, "a", f"{elsewhere}:a")
    assert [run["name"] for run in found.runs] == ["a", f"{elsewhere}:a"]
    assert {line.difference for line in found.lines} == {0.0}


def test_the_command_prints_and_writes_the_same_comparison(store, tmp_path, capsys):
    out = tmp_path / "compared"
    assert main(["compare", "a", "b", "c", "--artifacts", str(store), "--resamples", "500", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    found = json.loads((out / "comparison.json").read_text())
    texts = {name: (out / name).read_text() for name in FILES[1:]} | {"printed": printed}
    for text in texts.values():
        flat = re.sub(r"\s+", " ", text)
        for line in found["lines"]:
            assert signed(line["difference"]) in flat
        assert "Family: 8 tests, 2 pairs of runs by metric" in flat
        assert "b against a: no difference shown in 4 tests." in flat
        assert "c against a: better in 4 of 4 tests" in flat
        assert "rank.batch_size" in flat
    again = tmp_path / "again"
    assert main(["compare", "a", "b", "c", "--artifacts", str(store), "--resamples", "500", "--out", str(again)]) == 0
    assert all((again / name).read_bytes() == (out / name).read_bytes() for name in FILES)


def test_the_page_has_scoped_headers_escapes_names_and_scrolls_wide_tables(store, tmp_path):
    write_compared(store, "x<b>", {"test": values_of(NUM_USERS, 5)})
    assert main(["compare", "a", "x<b>", "--artifacts", str(store), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/comparison.html").read_text()
    assert re.findall(r"<th(?! scope=)[^e]", page) == []
    assert "x<b>" not in page
    assert faults(page) == []
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", page)


def test_the_picture_shows_losses_left_of_zero(store, tmp_path):
    assert main(["compare", "c", "a", "--artifacts", str(store), "--out", str(tmp_path / "out")]) == 0
    minus = "\N{MINUS SIGN}0."  # as matplotlib writes the ticks
    assert minus in (tmp_path / "out/comparison.html").read_text()


def test_a_metric_that_one_run_did_not_measure_is_no_part_of_the_family(store):
    path = read_scores("b", store).record.paths(store).folder("evaluate") / "per_viewer.parquet"
    frame = pl.read_parquet(path).with_columns(mrr_at_5=pl.col("ndcg_at_5"))
    size = path.stat().st_size
    frame.write_parquet(path)
    manifest = path.with_name("manifest.json")
    text = manifest.read_text()
    manifest.write_text(text.replace(f'"bytes": {size}', f'"bytes": {path.stat().st_size}'))
    assert {line.metric for line in compared(store, "a", "b").lines} == {"hr_at_5", "ndcg_at_5"}
    for named in (("mrr_at_5",), ("ndcg_at_5", "mrr_at_5")):  # a family that is stated is not made smaller
        with pytest.raises(UserError, match="--metric 'mrr_at_5' was not measured by every run"):
            compared(store, "a", "b", metrics=named)


def test_signs_of_nothing_do_not_depend_on_the_order():
    assert {signed(value) for value in (0.0, -0.0, -1e-9)} == {"+0.0000"}
    assert np.sign([float(signed(-0.1)), float(signed(0.1))]).tolist() == [-1, 1]
