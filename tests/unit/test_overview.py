"""Runs as the command line shows them: in a row, in a few lines, and as JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.compared_runs import write_evaluated
from tripletune.cli.app import CHECKOUT, runs_like
from tripletune.cli.main import main
from tripletune.cli.overview import read_quality, run_rows
from tripletune.errors import MissingArtifactError
from tripletune.store.files import write_json
from tripletune.store.runs import RunRecord, list_runs, local_run, update_run, write_run

SHIFT = {"statistic": "ks", "p_value": None, "before": "10", "now": "12", "words": "major", "limit": 0.0}


def decide(root: Path, run: str, adapter: str, before: str | None, *, promote: bool, decided: str) -> None:
    folder = root / "ml" / "promote" / run
    folder.mkdir(parents=True)
    (folder / "decision.html").write_text("the decision")
    decision = {"model": "m", "adapter": adapter, "champion_before": before, "promote": promote, "decided": decided}
    write_json(folder / "decision.json", {**decision, "reason": "it [is] so"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Promoted, promoted after it, refused, failed, and a member of an ablation set."""
    for day, name in enumerate(("first", "second", "third", "failed", "member"), start=1):
        write_evaluated(tmp_path, name, day, 0.1 * day, f"2026-01-0{day}T00:00:00Z", num_users=40)
        update_run(tmp_path, name, finished=f"2026-01-0{day}T00:07:30Z")
    decide(tmp_path, "first", "a", None, promote=True, decided="2026-01-01T00:07:00Z")
    decide(tmp_path, "second", "b", "a", promote=True, decided="2026-01-02T00:07:00Z")
    decide(tmp_path, "third", "c", "b", promote=False, decided="2026-01-03T00:07:00Z")
    update_run(tmp_path, "failed", status="failed", error="no disk [left]")
    member = local_run(tmp_path, "member")
    write_run(tmp_path, member.model_copy(update={"tags": {"ablation.set": "hints"}}))
    return tmp_path


def in_root(root: Path, *words: str) -> int:
    return main([*words, "--artifacts", str(root)])


def said(capsys: pytest.CaptureFixture[str]) -> dict | list:
    """What was printed, which is JSON and nothing else."""
    return json.loads(capsys.readouterr().out)


def test_runs_are_listed_oldest_first_with_how_they_ended_and_which_one_is_the_champion(root, capsys):
    assert in_root(root, "runs", "--json") == 0
    rows = said(capsys)
    assert [(row["run"], row["status"], row["promotion"]) for row in rows] == [
        ("first", "completed", "promoted"),
        ("second", "completed", "champion"),
        ("third", "completed", "not promoted"),
        ("failed", "failed", ""),
    ]
    evaluate = local_run(root, "first").paths(root).folder("evaluate")
    assert rows[0]["metric"] == json.loads((evaluate / "metrics.json").read_text())["tuned_ndcg_at_5"]
    assert {row["minutes"] for row in rows} == {7.5}
    assert rows[3]["error"] == "no disk [left]"


def test_the_table_of_runs_counts_what_it_leaves_out_and_shows_brackets(root, capsys):
    assert in_root(root, "runs", "--last", "2") == 0
    table = capsys.readouterr().out
    assert "2 older runs are left out" in table
    assert "no disk [left]" in table
    assert ("third" in table, "second" in table) == (True, False)


def test_members_of_ablation_sets_are_listed_where_asked_for(root, capsys):
    assert in_root(root, "runs", "--members", "--json", "--last", "1") == 0
    assert [row["run"] for row in said(capsys)] == ["member"]


def test_a_dataset_without_runs_is_answered_with_those_that_have_some(root, capsys):
    assert in_root(root, "runs", "--dataset", "mll") == 2
    assert capsys.readouterr().err == f"tripletune: --dataset 'mll': no run of it in {root}; there are ml\n"


def test_a_run_that_runs_or_left_no_metrics_has_no_figures(root):
    record = local_run(root, "first")
    unfinished = record.model_copy(update={"finished": "", "status": "running", "fingerprints": {"split": "f"}})
    (row,) = run_rows([unfinished], root)
    assert (row.minutes, row.metric) == (None, None)
    (record.paths(root).folder("evaluate") / "metrics.json").unlink()
    (row,) = run_rows([record], root)
    assert row.metric is None


def test_show_has_verdicts_promotion_and_addresses_in_a_few_lines(root, capsys):
    assert in_root(root, "show", "second") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run second: completed, 2026-01-02T00:00:00Z to 2026-01-02T00:07:30Z"
    assert lines[1] == "stages     4 made; made: ingest, split, generate, evaluate"
    assert any(line.startswith("Did tuning help? yes. ndcg_at_5 of tuned minus untuned: +0.250") for line in lines)
    assert "promoted: it [is] so" in lines
    assert f"decision   {root / 'ml/promote/second/decision.html'}" in lines
    assert len(lines) < 12


def test_show_names_the_stage_that_failed_and_why(root, capsys):
    update_run(root, "failed", stage=("evaluate", "failed"))
    assert in_root(root, "show", "failed") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [
        "no disk [left]",
        "stages     3 made, 1 failed; made: ingest, split, generate; failed: evaluate",
    ]


def test_show_reads_a_run_of_a_version_that_had_other_settings(root, capsys):
    record = local_run(root, "first")
    config = {**record.config, "promote": {"margin": 0.01}, "of_old": 1}
    write_run(root, RunRecord.model_validate(record.model_dump() | {"config": config, "mlflow_run_id": "abc"}))
    assert in_root(root, "show", "first") == 0
    assert f"mlflow     sqlite:///{root / 'mlflow.db'}, run abc" in capsys.readouterr().out


def test_show_as_json_has_settings_stages_verdicts_and_metrics(root, capsys):
    assert in_root(root, "show", "second", "--json") == 0
    found = said(capsys)
    assert (found["name"], found["promotion"]["promote"]) == ("second", True)
    assert found["stages"]["split"]["manifest"]["stage"] == "split"
    assert Path(found["stages"]["split"]["folder"]).is_dir()
    assert found["verdicts"][0] == {"question": "Did tuning help?", "word": "yes"} | found["verdicts"][0]
    assert list(found["metrics"]) == ["tuned_ndcg_at_5"]
    assert found["config"]["dataset"] == "ml"


def measure(root: Path, run: str, shifts: list[dict]) -> dict:
    line = {"purpose": "train", "warm": 1000, "unseen": 24}
    figures = {
        "run": run,
        "examples": 1024,
        "audience": [line],
        "answers": [{"purpose": "train", "answers": 2000, "share_retrieved": 0.25}],
        "answer_position": [{"purpose": "train", "p_value": 0.125}],
        "flaws": {"examples": 3, "kinds": [{"kind": "double space", "examples": 3}]},
        "compared_with": {"run": "first"} if shifts else None,
        "not_compared": "" if shifts else "there is no other run.",
        "shifts": shifts,
    }
    folder = root / "ml" / "quality" / run
    folder.mkdir(parents=True)
    write_json(folder / "quality.json", figures)
    update_run(root, run, stage=("quality", "made"))
    return figures


def test_quality_shows_the_newest_measured_run_with_what_is_above_its_limit_first(root, capsys):
    far = [{**SHIFT, "measure": f"m{number}", "value": number / 100, "above": False} for number in range(1, 12)]
    stopped = {**SHIFT, "measure": "liked", "value": 0.02, "limit": 0.01, "above": True}
    measure(root, "third", [*far, stopped])
    assert in_root(root, "quality") == 0
    shown = capsys.readouterr().out
    cells = [line.split("│")[1].strip() for line in shown.splitlines() if line.startswith("│")]
    assert cells == ["train", "liked", *(f"m{number}" for number in range(11, 4, -1))]
    row = next(line for line in shown.splitlines() if "train" in line)
    assert [cell.strip() for cell in row.split("│")[2:6]] == ["1,024", "2,000", "25.0 %", "0.125"]
    assert "double space 3" in shown
    assert shown.splitlines()[-1] == f"page: {root / 'ml/quality/third/quality.html'}"


def test_quality_as_json_is_the_file_and_a_run_without_one_is_named(root, capsys):
    figures = measure(root, "second", [])
    assert in_root(root, "quality", "second", "--json") == 0
    assert said(capsys) == figures
    assert in_root(root, "quality", "second") == 0
    assert "drift: not measured: there is no other run." in capsys.readouterr().out
    with pytest.raises(MissingArtifactError, match=r"run 'first' has no .*quality\.json"):
        read_quality(local_run(root, "first"), root)


def test_compare_as_json_is_its_file(root, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["compare", "first", "second", "--resamples", "100", "--json", "--out", str(out)]
    assert in_root(root, *words) == 0
    assert said(capsys) == json.loads((out / "comparison.json").read_text())


def test_gc_as_json_lists_what_it_would_remove_and_then_what_it_removed(root, capsys):
    orphan = root / "ml" / "split" / ("0" * 32)
    orphan.mkdir(parents=True)
    (orphan / "file").write_text("12345")
    assert in_root(root, "gc", "--json") == 0
    found = said(capsys)
    assert [one["folder"] for one in found["garbage"]] == [str(orphan)]
    assert (found["removed"], orphan.is_dir()) == ([], True)
    assert in_root(root, "gc", "--json", "--delete") == 0
    assert [one["num_bytes"] for one in said(capsys)["removed"]] == [5]
    assert not orphan.exists()


def test_plan_as_json_has_every_stage_with_its_reasons(tmp_path, capsys):
    config = str(CHECKOUT / "configs/smoke.toml")
    assert main(["plan", "--json", "--config", config, "--artifacts", str(tmp_path), "--set", "seed=3"]) == 0
    found = said(capsys)
    assert (found["dataset"], found["set"]) == ("smoke", ["seed=3"])
    first, last = found["stages"][0], found["stages"][-1]
    assert (first["stage"], first["what"], first["because"]) == ("ingest", "make", ["there is no earlier output"])
    assert (last["stage"], last["fingerprint"]) == ("promote", "")


def test_a_shell_completes_names_of_runs_newest_first(root):
    assert runs_like(SimpleNamespace(params={"artifacts": str(root)}), "f") == ["failed", "first"]
    assert len(runs_like(SimpleNamespace(params={"artifacts": str(root)}), "")) == len(list_runs(root))
    assert runs_like(SimpleNamespace(params={"artifacts": str(root / "none")}), "") == []
