"""Deployments on a local Prefect server: a worker completes them, ``--watch`` tells success from failure."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.automations import ensure_automations
from tests.flows.conftest import ROOT
from tripletune.errors import ConfigError

PREFECT = str(Path(sys.executable).with_name("prefect"))


def wait_until(ready: object, what: str, patience: float = 120.0) -> None:
    assert callable(ready)
    deadline = time.monotonic() + patience
    while not ready():
        assert time.monotonic() < deadline, f"{what} took longer than {patience} s"
        time.sleep(0.5)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def prefect_env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A server and a worker with a home of their own, on localhost."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    env = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": api, "TRIPLETUNE_HOME": str(ROOT)}
    log = (home / "server.log").open("wb")
    serve = [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(serve, cwd=ROOT, env=env, stdout=log, stderr=log)
    worker = None
    try:
        wait_until(lambda: answers(f"{api}/health"), "the server")
        deploy(env, "--config", "configs/smoke.toml")
        start = [PREFECT, "worker", "start", "--pool", "tripletune"]
        worker = subprocess.Popen(start, cwd=ROOT, env=env, stdout=log, stderr=log)
        yield env
    finally:
        for process in filter(None, (worker, server)):
            process.terminate()
            process.wait(timeout=60)
        log.close()


def call(env: dict[str, str], *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([PREFECT, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def deploy(env: dict[str, str], *arguments: str) -> list[str]:
    """What ``make deploy`` runs; returns the lines it prints."""
    command = [sys.executable, "-m", "tasks.deploy", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


def ask(env: dict[str, str], path: str, data: object = None, method: str = "") -> Any:
    """Ask the server; with data a POST unless the method says otherwise."""
    request = urllib.request.Request(
        f"{env['PREFECT_API_URL']}/{path}",
        data=None if data is None else json.dumps(data).encode(),
        headers={"content-type": "application/json"},
        method=method or None,
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        content = response.read()
    return json.loads(content) if content else None


def run_smoke(env: dict[str, str], config: Path, artifacts: Path) -> subprocess.CompletedProcess[str]:
    parameters = ["--param", f"config={config}", "--param", f"artifacts={artifacts}"]
    return call(env, "deployment", "run", "tripletune-smoke/smoke", "--watch", *parameters, check=False)


def test_the_smoke_deployment_completes_and_watch_exits_0(prefect_env, micro):
    done = run_smoke(prefect_env, micro.config, micro.root)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_a_failing_stage_fails_the_deployment_and_watch_exits_non_zero(prefect_env, micro, tmp_path):
    broken = tmp_path / "broken.toml"
    # every rating of the synthetic release is above the highest allowed one
    broken.write_text(micro.config.read_text() + "\n[ingest]\nrating_max = 0.1\nrating_min = 0.0\n")
    done = run_smoke(prefect_env, broken, tmp_path / "artifacts")
    assert done.returncode != 0


def test_the_nightly_schedule_creates_runs(prefect_env):
    # with sqlalchemy 2.1 everything seems to work but no scheduled run is ever created
    wanted = {
        "flows": {"name": {"any_": ["tripletune-nightly"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }

    def scheduled() -> bool:
        return bool(ask(prefect_env, "flow_runs/count", wanted) > 0)

    wait_until(scheduled, "the first scheduled run", patience=150)


def deployment(env: dict[str, str], name: str) -> dict[str, Any]:
    found = ask(env, f"deployments/name/tripletune-{name}/{name}")
    assert isinstance(found, dict)
    return found


def gpu_limit(env: dict[str, str]) -> int:
    return int(ask(env, "v2/concurrency_limits/tag:gpu")["limit"])


def test_the_first_deploy_makes_pools_and_the_limit_and_starts_a_nightly_run_that_could_end(prefect_env):
    pools = {pool["name"]: pool["type"] for pool in ask(prefect_env, "work_pools/filter", {})}
    assert {"tripletune", "cpu", "gpu"} <= pools.keys()
    assert gpu_limit(prefect_env) == 1
    nightly, smoke = deployment(prefect_env, "nightly"), deployment(prefect_env, "smoke")
    assert nightly["parameters"] == {"config": "configs/smoke.toml"}
    assert [schedule["active"] for schedule in nightly["schedules"]] == [True]
    assert smoke["global_concurrency_limit"]["limit"] == 1


def test_a_redeploy_changes_what_it_is_given_and_nothing_that_people_set_on_the_server(prefect_env):
    nightly, smoke = deployment(prefect_env, "nightly"), deployment(prefect_env, "smoke")
    (schedule,) = nightly["schedules"]
    of_nightly = f"deployments/{nightly['id']}/schedules"
    by_hand = {"schedule": {"cron": "0 12 * * 0", "timezone": "UTC"}, "active": False}
    try:
        ask(prefect_env, f"{of_nightly}/{schedule['id']}", {"active": False}, "PATCH")
        ask(prefect_env, of_nightly, [by_hand])
        ask(prefect_env, f"deployments/{smoke['id']}/pause_deployment", {})
        ask(prefect_env, "v2/concurrency_limits/tag:gpu", {"limit": 3}, "PATCH")
        given = ("--only", "nightly smoke", "--cron", "30 5 * * *", "--timezone", "Europe/Berlin")
        said = deploy(prefect_env, *given, "--timeout-hours", "7")
        nightly, smoke = deployment(prefect_env, "nightly"), deployment(prefect_env, "smoke")
        found = {one["schedule"]["cron"]: (one["active"], one["schedule"]["timezone"]) for one in nightly["schedules"]}
        assert found == {"30 5 * * *": (False, "Europe/Berlin"), "0 12 * * 0": (False, "UTC")}
        assert smoke["paused"]
        assert gpu_limit(prefect_env) == 3
        assert nightly["job_variables"]["env"]["TRIPLETUNE_TIMEOUT_HOURS"] == "7"
        assert smoke["job_variables"]["env"]["TRIPLETUNE_TIMEOUT_HOURS"] == "1"
        assert said[0] == "tag gpu: 3 tasks at once (kept)"
        assert "tripletune-nightly/nightly: configs/ml-32m.toml (was configs/smoke.toml), pool tripletune" in said
        assert any(line.startswith("  30 5 * * * Europe/Berlin: paused as before; to start it: ") for line in said)
        assert "tripletune-smoke/smoke: pool tripletune, paused as before" in said
    finally:
        ask(prefect_env, f"deployments/{smoke['id']}/resume_deployment", {})
        ask(prefect_env, "v2/concurrency_limits/tag:gpu", {"limit": 1}, "PATCH")


@pytest.mark.slow  # a deploy more: eight seconds of two processes that import Prefect
def test_a_new_schedule_whose_runs_would_fail_comes_paused_and_says_why(prefect_env):
    ask(prefect_env, f"deployments/{deployment(prefect_env, 'nightly')['id']}", method="DELETE")
    said = deploy(prefect_env, "--only", "nightly", "--gpu-limit", "2")
    assert [schedule["active"] for schedule in deployment(prefect_env, "nightly")["schedules"]] == [False]
    assert gpu_limit(prefect_env) == 2
    (line,) = [line for line in said if line.startswith("  15 4 * * * Europe/London: ")]
    assert "paused, because a run here would fail now: inputs: source.movielens: downloads/ml-32m.zip is not" in line
    assert "prefect deployment schedule resume tripletune-nightly/nightly " in line


def test_a_nightly_run_with_absent_inputs_fails_before_it_starts_in_one_line(prefect_env, tmp_path):
    parameters = ["--param", "movielens=no.zip", "--param", "config=configs/smoke.toml"]
    parameters += ["--param", f"artifacts={tmp_path / 'artifacts'}"]
    done = call(prefect_env, "deployment", "run", "tripletune-nightly/nightly", "--watch", *parameters, check=False)
    assert done.returncode == 1
    failed = {
        "deployments": {"name": {"any_": ["nightly"]}},
        "flow_runs": {"state": {"type": {"any_": ["FAILED"]}}},
    }
    (run,) = ask(prefect_env, "flow_runs/filter", failed)
    wanted = "pre-flight failed, nothing was started: inputs: source.movielens: no.zip is not there"
    assert run["state"]["message"].startswith(wanted)
    assert run["total_run_time"] < 30  # a second or two where the machine has nothing else to do
    log = ask(prefect_env, "logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    assert [line["message"] for line in log if "Traceback" in line["message"]] == []
    assert sum("pre-flight failed" in line["message"] for line in log) == 1
    assert not (tmp_path / "artifacts").exists()


def test_a_deploy_made_the_automations_and_what_differs_is_changed_but_a_paused_one_stays_paused(prefect_env):
    crash, again = "tripletune: crash dead runs", "tripletune: run a crashed nightly run again"
    with temporary_settings({PREFECT_API_URL: prefect_env["PREFECT_API_URL"]}):
        before = ensure_automations()
        assert before[:2] == [f"unchanged: {crash}", f"unchanged: {again}"]
        assert "no block named 'tripletune-alerts'" in before[2]
        Webhook(url="http://127.0.0.1:9/").save("tripletune-alerts")
        with_alerts = ensure_automations()
        assert with_alerts[:2] == [f"unchanged: {crash}", f"unchanged: {again}"]
        assert [line.split(":")[0] for line in with_alerts[2:]] == ["created"] * 6
        with get_client(sync_client=True) as client:
            client.pause_automation(client.read_automations_by_name(crash)[0].id)
            changed = ensure_automations(missed=timedelta(seconds=300))
            assert changed[0] == f"updated: {crash}"
            assert {line.split(":")[0] for line in changed[1:]} == {"unchanged"}
            (after,) = client.read_automations_by_name(crash)
            assert not after.enabled
            assert after.trigger.within == timedelta(seconds=300)
            # nothing was made twice, and nothing else is there
            assert len(client.read_automations()) == 8


def test_automations_without_a_server_are_a_mistake_in_one_line():
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(ConfigError, match=r"no Prefect server answers at PREFECT_API_URL = 'http://127.0.0.1:9/api'"),
    ):
        ensure_automations()
