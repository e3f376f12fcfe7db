"""Weekly training, daily shards: which earlier run's specialists a run takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tripletune.config import RunConfig
from tripletune.config.presets import load_config
from tripletune.errors import ConfigError
from tripletune.pipeline.specialists import pinned_specialists
from tripletune.store.runs import RunRecord, write_run

POLICY = {"specialists": {"every_days": 7}}


def config_of(day: str, **more: Any) -> RunConfig:
    return RunConfig.model_validate({"dataset": "toy", "ingest": {"as_of": day}, **POLICY, **more})


def add_run(root: Path, day: str, trained: str, *, status: str = "completed", **more: Any) -> None:
    """A run as of a day with the specialists that ``trained`` names."""
    config = config_of(day, **more)
    record = RunRecord(
        name=f"toy-{day}-{trained}",
        dataset="toy",
        status=status,  # type: ignore[arg-type]
        started="2026-01-01T00:00:00Z",
        config=config.model_dump(mode="json"),
        fingerprints={stage: f"{trained}-{stage}" for stage in config.specialist_stages},
    )
    paths = record.paths(root)
    for stage in record.fingerprints:
        if not paths.is_here(stage):
            paths.build(stage, lambda work: {"stage": str(work)})
    write_run(root, record)


def taken(root: Path, day: str, **more: Any) -> str:
    """Whose specialists a run takes; empty: it trains its own."""
    found = pinned_specialists(config_of(day, **more), root)
    (name,) = {fingerprint.split("-")[0] for fingerprint in found.values()} or {""}
    return name


def test_specialists_are_kept_until_they_are_seven_days_old_whoever_used_them_since(tmp_path):
    add_run(tmp_path, "2020-03-01", "a")
    add_run(tmp_path, "2020-03-06", "a")  # took them, and made them no younger
    assert [taken(tmp_path, f"2020-03-0{day}") for day in (1, 2, 7, 8)] == ["a", "a", "a", ""]
    add_run(tmp_path, "2020-03-08", "b")
    assert taken(tmp_path, "2020-03-09") == "b"


def test_none_that_was_trained_on_later_ratings_is_taken(tmp_path):
    add_run(tmp_path, "2020-03-04", "later")
    assert taken(tmp_path, "2020-03-03") == ""
    assert taken(tmp_path, "2020-03-04") == "later"


@pytest.mark.parametrize(
    "more", [{"split": {"like": 3.5}}, {"seed": 3}, {"rgat": {"dim": 8}}, {"knowledge": {"max_actors": 2}}]
)
def test_other_settings_of_what_is_trained_train_it_again(more, tmp_path):
    add_run(tmp_path, "2020-03-01", "a")
    assert taken(tmp_path, "2020-03-02", **more) == ""
    assert taken(tmp_path, "2020-03-02", rank={"batch_size": 3}) == "a"


def test_runs_that_failed_and_outputs_that_are_gone_are_not_taken(tmp_path):
    add_run(tmp_path, "2020-03-01", "a", status="failed")
    assert taken(tmp_path, "2020-03-02") == ""
    add_run(tmp_path, "2020-03-01", "b")
    (tmp_path / "toy" / "rgat" / "b-rgat" / "manifest.json").unlink()
    assert taken(tmp_path, "2020-03-02") == ""


def test_a_usual_run_takes_none_of_a_run_as_of_a_day(tmp_path):
    add_run(tmp_path, "2020-03-01", "a")
    usual = RunConfig.model_validate({"dataset": "toy", "specialists": {"every_days": 36_500}})
    assert pinned_specialists(usual, tmp_path) == {}


def test_a_pin_and_a_policy_are_one_too_many(tmp_path):
    preset = tmp_path / "preset.toml"
    preset.write_text('dataset = "toy"\n')
    with pytest.raises(ConfigError, match=r"pin = 'r' names a run, and every_days = 7 chooses one; set one"):
        load_config(preset, ["specialists.pin=r", "specialists.every_days=7"])
