"""What `make deploy` registers, before a server is asked: values in place of those of prefect.yaml, and mistakes."""

from __future__ import annotations

import os
import subprocess

import pytest

import flows
from tasks.deploy import Chosen, describe, main
from tasks.stages import TASKS
from tests.flows.conftest import ROOT
from tripletune.errors import ConfigError

SMOKE = "configs/smoke.toml"


def by_name(chosen):
    return {one["name"]: one for one in describe(chosen)["deployments"]}


def configs(found):
    """Presets of the deployments that name one: all but smoke, and ablate, whose set names it."""
    return {one["parameters"]["config"] for name, one in found.items() if name not in ("smoke", "ablate")}


def test_without_a_choice_the_file_holds():
    found = by_name(Chosen())
    assert configs(found) == {"configs/ml-32m.toml"}
    assert found["nightly"]["schedules"] == [{"slug": "nightly", "cron": "15 4 * * *", "timezone": "Europe/London"}]
    hours = {name: one["work_pool"]["job_variables"]["env"]["TRIPLETUNE_TIMEOUT_HOURS"] for name, one in found.items()}
    assert hours == {**dict.fromkeys(found, "23"), "smoke": "1"}


def test_chosen_values_replace_those_of_the_file_and_smoke_keeps_its_preset_and_its_timeout():
    # a pool that is called as another one of the file is not renamed twice
    pools = {"tripletune": "cpu", "cpu": "shards", "gpu": ""}
    found = by_name(Chosen(config=SMOKE, cron="0 5 * * 1", timezone="UTC", pools=pools, timeout_hours="7.5"))
    assert {name: one["work_pool"]["name"] for name, one in found.items()} == {
        **dict.fromkeys(("nightly", "smoke", "ablate", "backfill"), "cpu"),
        **dict.fromkeys(("nightly-pools", "generate-shards"), "shards"),
        **dict.fromkeys(("finetune-llama", "rank-models"), "gpu"),
    }
    assert configs(found) == {SMOKE}
    assert "parameters" not in found["smoke"]
    assert found["ablate"]["parameters"] == {"set_file": "configs/ablations/hints.toml"}
    assert found["nightly"]["schedules"] == [{"slug": "nightly", "cron": "0 5 * * 1", "timezone": "UTC"}]
    hours = {name: one["work_pool"]["job_variables"]["env"]["TRIPLETUNE_TIMEOUT_HOURS"] for name, one in found.items()}
    assert hours == {**dict.fromkeys(found, "7.5"), "smoke": "1"}


def test_some_deployments_alone():
    assert list(by_name(Chosen(only=("smoke",)))) == ["smoke"]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--only", "nightly nigthly", "no deployment 'nigthly'"),
        ("--config", "configs/none.toml", "no config file"),
        ("--cron", "every day", "CRON = 'every day'"),
        ("--timezone", "Mars/Olympus", "TZ = 'Mars/Olympus'"),
        ("--timeout-hours", "nan", "TIMEOUT_HOURS = 'nan'"),
        ("--gpu-limit", "0", "GPU_LIMIT = '0'"),
    ],
)
def test_a_wrong_value_ends_in_one_line(option, value, said, capsys):
    assert main([option, value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("make deploy: ")
    assert said in line


def test_make_passes_what_is_given_and_neither_its_own_default_nor_the_environments_time_zone():
    def passed(*given: str) -> str:
        environment = {**os.environ, "TZ": "Asia/Tokyo"}
        command = ["make", "--dry-run", "deploy", *given]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.replace("\\\n", "")

    assert '--config ""' in passed()
    assert '--timezone ""' in passed()
    given = passed(f"CONFIG={SMOKE}", "TZ=Europe/Berlin", "CRON=15 4 * * *", "GPU_LIMIT=2", "ONLY=smoke nightly")
    for option in (f'--config "{SMOKE}"', '--timezone "Europe/Berlin"', '--cron "15 4 * * *"', '--gpu-limit "2"'):
        assert option in given
    assert '--only "smoke nightly"' in given


def test_the_tasks_that_hold_the_language_model_and_no_others_carry_the_limited_tag():
    limited = {name for name, task in TASKS.items() if "gpu" in task.tags}
    assert limited == {"teach", "finetune", "rank", "probe", "promote"}
    assert all("tripletune" in task.tags for task in TASKS.values())


def test_a_flow_has_the_timeout_of_its_deployment_and_by_hand_none(monkeypatch):
    for given, seconds in (("", None), ("inf", None), ("0.5", 1800.0)):
        monkeypatch.setenv("TRIPLETUNE_TIMEOUT_HOURS", given)
        assert flows._timeout_seconds() == seconds
    for wrong in ("0", "-1", "soon", "nan"):
        monkeypatch.setenv("TRIPLETUNE_TIMEOUT_HOURS", wrong)
        with pytest.raises(ConfigError, match="a number above 0"):
            flows._timeout_seconds()
