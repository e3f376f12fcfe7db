"""The days of a backfill, the runs that stand aside, and the table."""

from __future__ import annotations

import json
from datetime import date

import pytest

from tripletune.backfill import HEADS, day_of, days_of, finished_run, parts_until, write_days
from tripletune.config import RunConfig
from tripletune.errors import ConfigError
from tripletune.pipeline.stages import run_promote
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, read_run, write_run

FACTS = {
    "ingest": {"rows_kept": 1200, "left_out_as_later": {"ratings": 34}},
    "generate": {"examples": {"train": 5600, "test": 7}},
}


def write_day(root, name: str, day: str | None, status: str = "completed") -> RunRecord:
    settings = RunConfig.model_validate({"dataset": "toy", "ingest": {"as_of": day}})
    record = RunRecord(
        name=name, dataset="toy", status=status, started=f"2026-01-01T00:00:0{len(name)}Z",  # type: ignore[arg-type]
        config=settings.model_dump(mode="json"), fingerprints={"ingest": f"i{day}", "generate": f"g{day}"},
        stages={"ingest": "made", "generate": "reused"},
    )  # fmt: skip
    for stage, facts in FACTS.items():
        if not record.paths(root).is_here(stage):
            record.paths(root).build(stage, lambda work, facts=facts: facts)
    write_run(root, record)
    return record


def test_days_run_from_the_first_to_the_last():
    found = days_of(date(2020, 2, 27), date(2020, 3, 4), 3)
    assert [day.isoformat() for day in found] == ["2020-02-27", "2020-03-01", "2020-03-04"]
    assert days_of(date(2020, 3, 1), date(2020, 3, 1), 7) == [date(2020, 3, 1)]
    with pytest.raises(ConfigError, match="from 2020-03-02 to 2020-03-01"):
        days_of(date(2020, 3, 2), date(2020, 3, 1), 1)


def test_a_day_runs_the_parts_up_to_the_one_that_is_asked_for():
    assert (parts_until("shards"), parts_until("rank")) == (("shards",), ("shards", "finetune", "rank"))
    with pytest.raises(ConfigError, match=r"until = 'generate': there are shards, finetune, rank"):
        parts_until("generate")


def test_a_day_that_is_done_is_found_by_its_outputs(tmp_path):
    record = write_day(tmp_path, "one", "2020-03-01")
    paths, day = record.paths(tmp_path), date(2020, 3, 1)
    assert finished_run(paths, day, "generate") == record
    assert finished_run(paths, date(2020, 3, 2), "generate") is None
    assert finished_run(paths, day, "evaluate") is None
    other = RunPaths(root=tmp_path, dataset="toy", fingerprints={"ingest": "i", "generate": "changed"})
    assert finished_run(other, day, "generate") is None
    write_day(tmp_path, "one", "2020-03-01", status="failed")
    assert finished_run(paths, day, "generate") is None


def test_a_run_as_of_a_day_is_the_latest_only_where_it_is_named(tmp_path):
    usual = write_day(tmp_path, "a", None)
    aside = write_day(tmp_path, "later", "2020-03-01")
    assert (usual.is_aside, aside.is_aside, aside.as_of) == (False, True, "2020-03-01")
    assert read_run(tmp_path).name == "a"
    assert read_run(tmp_path, "later").name == "later"


def test_an_adapter_of_an_earlier_day_is_not_promoted(tmp_path):
    record = write_day(tmp_path, "one", "2020-03-01")
    with pytest.raises(ConfigError, match=r"ingest\.as_of = 2020-03-01: an adapter of an earlier day is not promoted"):
        run_promote(record.paths(tmp_path), record.settings(), run="one", child=None)  # type: ignore[arg-type]


def test_the_table_has_a_line_for_each_day(tmp_path):
    record = write_day(tmp_path, "one", "2020-03-01")
    day = day_of(record, tmp_path, "ran")
    as_json, as_markdown = write_days(tmp_path / "out", [day])
    (found,) = json.loads(as_json.read_text())
    assert (found["ratings"], found["left_out"], found["examples"]) == (1200, 34, {"train": 5600, "test": 7})
    assert (found["made"], found["reused"]) == (["ingest"], ["generate"])
    lines = as_markdown.read_text().splitlines()
    assert lines[0] == f"| {' | '.join(HEADS)} |"
    assert lines[2].startswith("| 2020-03-01 | one | ran | 1,200 | 34 | train 5,600, test 7 | 1 | 1 | ")
