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
        for pool in ("tripletune", "cpu", "gpu"):
            call(env, "work-pool", "create", pool, "--type", "process")
        call(env, "--no-prompt", "deploy", "--all")
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
    request = urllib.request.Request(
        f"{prefect_env['PREFECT_API_URL']}/flow_runs/count",
        data=json.dumps(wanted).encode(),
        headers={"content-type": "application/json"},
    )

    def scheduled() -> bool:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.read()) > 0

    wait_until(scheduled, "the first scheduled run", patience=150)


def nightly_schedule(env: dict[str, str]) -> dict[str, Any]:
    url = f"{env['PREFECT_API_URL']}/deployments/name/tripletune-nightly/nightly"
    with urllib.request.urlopen(url, timeout=10) as response:
        (schedule,) = json.loads(response.read())["schedules"]
    assert isinstance(schedule, dict)
    return schedule


def test_a_paused_schedule_stays_paused_when_it_is_deployed_again(prefect_env):
    name, schedule = "tripletune-nightly/nightly", nightly_schedule(prefect_env)
    assert schedule["active"]
    call(prefect_env, "deployment", "schedule", "pause", name, schedule["id"])
    try:
        assert not nightly_schedule(prefect_env)["active"]
        call(prefect_env, "--no-prompt", "deploy", "--all")
        after = nightly_schedule(prefect_env)
        assert not after["active"]
        assert after["schedule"] == schedule["schedule"]
    finally:
        call(prefect_env, "deployment", "schedule", "resume", name, nightly_schedule(prefect_env)["id"])
    call(prefect_env, "--no-prompt", "deploy", "--all")
    assert nightly_schedule(prefect_env)["active"]


def test_automations_are_created_then_changed_where_they_differ_and_a_paused_one_stays_paused(prefect_env):
    crash, again = "tripletune: crash dead runs", "tripletune: run a crashed nightly run again"
    with temporary_settings({PREFECT_API_URL: prefect_env["PREFECT_API_URL"]}):
        created = ensure_automations()
        assert created[:2] == [f"created: {crash}", f"created: {again}"]
        assert "no block named 'tripletune-alerts'" in created[2]
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
