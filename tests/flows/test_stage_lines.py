"""The log of a run tells: what each stage starts from, what it gave, and nothing of the libraries; so does its page."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing

import pytest

from tests.flows.conftest import MicroRun
from tripletune.pipeline.registry import BY_NAME
from tripletune.pipeline.stage_lines import headline

NOISE = ("Loading weights", "Writing model shards", "FutureWarning", "gemm_4bit", "{'loss'", "alembic", "it/s]")


def messages(untouched: MicroRun) -> list[str]:
    """Lines of the log without time and level."""
    return [found[1] for line in untouched.log.splitlines() if (found := re.match(r"[\d:.]+ \| \w+ +\| (.*)", line))]


def on_page(untouched: MicroRun, question: str) -> list[tuple[str, ...]]:
    """Rows of the database of the run's own Prefect server."""
    with closing(sqlite3.connect(untouched.home / "prefect.db")) as base:
        return base.execute(question).fetchall()


def only(lines: list[str], start: str) -> str:
    found = [line for line in lines if line.startswith(start)]
    assert len(found) == 1, (start, found)
    return found[0]


def test_each_stage_says_what_it_starts_from_and_why_it_is_not_reused(untouched):
    for stage in untouched.record.fingerprints:
        line = only(messages(untouched), f"{stage} starts: ")
        for parent, fingerprint in untouched.paths.manifest(stage)["parents"].items():
            assert f"{parent} {fingerprint[:8]}" in line
        assert line.endswith("; not reused: there is no earlier output")


def test_each_stage_says_at_its_end_what_its_manifest_says(untouched):
    for stage in untouched.record.fingerprints:
        manifest = untouched.paths.manifest(stage)
        line = only(messages(untouched), f"{stage} done in ")
        assert f" {manifest['seconds']:,.1f} s, peak {manifest['peak_bytes'] / 2**30:.2f} GiB: " in line
        assert line.endswith(headline(stage, manifest["facts"]))
        rows = sum(file.get("rows", 0) for file in manifest["files"].values())
        assert not rows or f"out {rows:,}; " in line


def test_rows_in_are_those_of_the_parents(untouched):
    of_parents = sum(
        file.get("rows", 0)
        for stage in ("generate", "finetune")
        for file in untouched.paths.manifest(stage)["files"].values()
    )
    assert f"rows in {of_parents:,}, out " in only(messages(untouched), "rank done in ")


@pytest.mark.parametrize("stage", [name for name, stage in BY_NAME.items() if stage.never_reused])
def test_a_stage_without_a_manifest_says_its_result_too(untouched, stage):
    lines = messages(untouched)
    assert only(lines, f"{stage} starts: ").endswith(f"never reused: {BY_NAME[stage].never_reused}")
    assert re.search(r"in [\d.]+ s, peak [\d.]+ GiB: (promoted, ndcg_at_5|346 examples, not compared)", untouched.log)
    assert only(lines, f"{stage} done in ")


def test_no_line_is_a_path_and_none_is_a_librarys_noise(micro):
    assert not [line for line in messages(micro) if str(micro.root) in line]
    assert not [line for line in micro.log.splitlines() if any(noise in line for noise in NOISE)]
    assert not [line for line in messages(micro) if "Task run" in line and "Finished in state" in line]


def test_prefects_page_has_the_same_lines(untouched):
    page = [message for (message,) in on_page(untouched, "select message from log order by timestamp")]
    for stage in untouched.record.stages:
        assert only(page, f"{stage} done in ") == only(messages(untouched), f"{stage} done in ")


def test_runs_and_tasks_are_named_by_dataset_and_date(untouched):
    ((name,),) = on_page(untouched, "select name from flow_run")
    assert re.fullmatch(r"micro 20\d\d-\d\d-\d\d \d\d:\d\d", name)
    tasks = {name for (name,) in on_page(untouched, "select name from task_run")}
    assert {f"{stage} {untouched.record.name}" for stage in untouched.record.stages} <= tasks


def test_the_page_shows_the_verdict_and_where_the_runs_pages_are(untouched):
    artifacts = dict(on_page(untouched, "select key, data from artifact where key is not null"))
    assert "promoted as version 1" in artifacts["tripletune-promotion"]
    for text in (untouched.record.mlflow_run_id, "report.html", "quality.html", "Is it promoted?"):
        assert text in artifacts["tripletune-run"]
