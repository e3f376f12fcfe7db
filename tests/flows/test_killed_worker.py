"""Worker or server killed in mid-training: the run is crashed, alerted, run again, resumed; nothing of it is left.

With a real server, worker, deployment and receiver of alerts. Minutes each; ``pytest --slow -s`` prints the times.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.flows.conftest import ROOT
from tripletune.store.runs import list_runs

PREFECT = str(Path(sys.executable).with_name("prefect"))
CRASHED_WITHIN = float(os.environ.get("CRASHED_WITHIN", "300"))
"""Seconds; a machine with other work may need more."""
PATIENCE = float(os.environ.get("PATIENCE", "900"))
"""Seconds for a run to get somewhere."""
EPOCHS = 24.0
NIGHTLY = "tripletune-nightly/nightly"
BLOCK = """
from prefect.blocks.webhook import Webhook
import sys
Webhook(url=sys.argv[1], headers={"content-type": "application/json"}).save("tripletune-alerts")
"""


def wait_until(ready: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    deadline = time.monotonic() + patience
    while not (found := ready()):
        assert time.monotonic() < deadline, f"{what} took longer than {patience} s"
        time.sleep(0.5)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Site:
    """A server, a worker and a receiver of alerts."""

    home: Path
    env: dict[str, str]
    port: int
    alerts: list[tuple[float, str]] = field(default_factory=list)
    server: psutil.Popen | None = None
    worker: psutil.Popen | None = None

    def start(self, *command: str) -> psutil.Popen:
        with (self.home / f"{command[0]}.log").open("ab") as log:
            # a shell's background jobs ignore SIGINT, which the worker sends itself on SIGTERM; services do not
            return psutil.Popen(
                ["env", "--default-signal=INT", PREFECT, *command],
                cwd=ROOT, env=self.env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start_server(self) -> None:
        self.server = self.start("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        wait_until(self.answers, "the server")

    def start_worker(self) -> None:
        kill_tree(self.worker)  # of a test that failed
        self.worker = self.start("worker", "start", "--pool", "tripletune")

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/health") is True
        except OSError:
            return False

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.env['PREFECT_API_URL']}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"},
            method=method,
        )
        # a busy server whose SQLite file is locked answers after a minute
        with urllib.request.urlopen(request, timeout=180) as response:
            return json.loads(response.read())

    def call(self, *arguments: str) -> str:
        done = subprocess.run(arguments, cwd=ROOT, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def states(self, run: str) -> list[tuple[str, datetime]]:
        found = self.ask("GET", f"/flow_run_states/?flow_run_id={run}")
        times = [(one["name"], datetime.fromisoformat(one["timestamp"])) for one in found]
        return sorted(times, key=lambda one: one[1])

    def slots_taken(self) -> dict[str, int]:
        limits = self.ask("POST", "/v2/concurrency_limits/filter", {})
        return {one["name"]: one["active_slots"] for one in limits if one["active_slots"]}


def kill_tree(process: psutil.Popen | None) -> None:
    """SIGKILL a process and all below it, as when the machine stops."""
    if process is not None:
        family = [process, *process.children(recursive=True)] if process.is_running() else []
        for one in family:
            one.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=30)


def receiver(alerts: list[tuple[float, str]]) -> HTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = json.loads(self.rfile.read(int(self.headers["content-length"])))["text"]
            alerts.append((time.time(), text))
            print(f"{datetime.now(UTC):%H:%M:%S} alert: {text}", flush=True)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    api = {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    env = {**os.environ, **api, "TRIPLETUNE_HOME": str(ROOT), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    # as docs/nightly.md has it: a server that forgets the leases ends the runs that hold them
    env["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] = "prefect.server.concurrency.lease_storage.filesystem"
    found = Site(home, env, port)
    hook = receiver(found.alerts)
    try:
        found.start_server()
        found.call(sys.executable, "-c", BLOCK, f"http://127.0.0.1:{hook.server_port}/")
        assert "created: tripletune: crash dead runs" in found.call(sys.executable, "-m", "tasks.deploy")
        yield found
    finally:
        kill_tree(found.worker)
        kill_tree(found.server)
        hook.shutdown()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("killed") / "artifacts"


def train(site: Site, config: Path, artifacts: Path, rate: float, age: float = 0.0) -> str:
    """Start the nightly deployment, and return its flow run's id once a training has a checkpoint.

    Args:
        age: seconds that it has been running by then, at least.
    """
    site.start_worker()
    old = set(artifacts.glob("micro/finetune/*.work"))
    settings = json.dumps([f"finetune.num_train_epochs={EPOCHS}", f"finetune.learning_rate={rate}"])
    said = site.call(
        PREFECT, "deployment", "run", NIGHTLY, "--param", f"config={config}", "--param", f"artifacts={artifacts}",
        "--param", f"set={settings}",
    )  # fmt: skip
    (run,) = [line.split()[-1] for line in said.splitlines() if "UUID:" in line]

    def has_checkpoint() -> bool:
        state = site.ask("GET", f"/flow_runs/{run}")["state"]
        assert state["type"] in ("SCHEDULED", "PENDING", "RUNNING"), state
        new = set(artifacts.glob("micro/finetune/*.work")) - old
        return any(found for folder in new for found in folder.rglob("checkpoint-*"))

    wait_until(has_checkpoint, "the first checkpoint")
    (begun,) = [at for name, at in site.states(run) if name == "Running"]
    time.sleep(max(0.0, begun.timestamp() + age - time.time()))
    assert has_checkpoint(), "the training is too short for this test"
    return run


def check_recovers(site: Site, artifacts: Path, run: str, killed: float, family: list[psutil.Process]) -> None:
    """Crashed in time, alerted, run again to the end from the checkpoint; nothing is left of the first try.

    Args:
        killed: when, in seconds since the epoch; or when the server was back.
        family: processes below the worker when it was killed.
    """

    def since(moment: datetime) -> float:
        return moment.timestamp() - killed

    def is_done() -> bool:
        return site.ask("GET", f"/flow_runs/{run}")["state"]["type"] == "COMPLETED"

    wait_until(lambda: [one for one in site.states(run) if one[0] == "Crashed"], "Crashed", CRASHED_WITHIN + 30)
    (crashed,) = [at for name, at in site.states(run) if name == "Crashed"]
    print(f"Crashed after {since(crashed):.0f} s")
    assert since(crashed) <= CRASHED_WITHIN
    heard = wait_until(lambda: [one for one in site.alerts if one[0] > killed and ": crashed: " in one[1]], "the alert")
    print(f"alert after {heard[0][0] - killed:.0f} s")
    assert not psutil.wait_procs(family, timeout=60)[1], "processes of the killed worker are left"
    wait_until(is_done, "the re-run")
    names = [name for name, _ in site.states(run)]
    print(f"completed after {since(site.states(run)[-1][1]):.0f} s: {' '.join(names)}")
    assert names.count("Running") == 2
    assert "AwaitingRetry" in names
    wait_until(lambda: not site.slots_taken(), "freeing the slots", 120)
    dead, last = list_runs(artifacts)[-2:]
    assert (dead.status, last.status) == ("killed", "completed")
    assert last.paths(artifacts).manifest("finetune")["facts"]["resumed_from_step"] > 0
    print(f"resumed from step {last.paths(artifacts).manifest('finetune')['facts']['resumed_from_step']}")
    client = MlflowClient(f"sqlite:///{artifacts / 'mlflow.db'}")
    first = client.get_run(dead.mlflow_run_id)
    print(f"MLflow: {first.info.status}, {first.data.tags['failure']}")
    assert first.info.status == "KILLED"
    assert first.data.tags["failure"] == dead.error
    assert not client.search_runs([dead.mlflow_experiment_id], "attributes.status = 'RUNNING'")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("kill", "rate"), [(signal.SIGTERM, 1e-3), (signal.SIGKILL, 1.1e-3)], ids=["TERM", "KILL"])
def test_a_worker_killed_in_mid_training(site, micro_config, artifacts, kill, rate):
    run = train(site, micro_config, artifacts, rate)
    assert site.worker is not None
    family = site.worker.children(recursive=True)
    assert len(family) >= 3  # the flow run, its guardian, its training
    killed = time.time()
    site.worker.send_signal(kill)
    site.worker.wait(60)
    site.start_worker()
    try:
        check_recovers(site, artifacts, run, killed, family)
    finally:
        kill_tree(site.worker)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_server_and_a_worker_killed_in_mid_training(site, micro_config, artifacts):
    # a server that was restarted holds back for 15 minutes what happens to a run within 5 minutes of its start: the
    # event before it, which it did not see itself, might still arrive
    run = train(site, micro_config, artifacts, 1.2e-3, age=130)
    assert site.worker is not None
    family = site.worker.children(recursive=True)
    kill_tree(site.server)
    kill_tree(site.worker)
    time.sleep(30)
    site.start_server()
    back = time.time()
    site.start_worker()
    try:
        check_recovers(site, artifacts, run, back, family)
    finally:
        kill_tree(site.worker)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_server_that_is_away_for_a_while_in_mid_training_costs_nothing(site, micro_config, artifacts):
    run = train(site, micro_config, artifacts, 1.3e-3)
    kill_tree(site.server)
    time.sleep(30)
    site.start_server()
    try:
        wait_until(lambda: site.ask("GET", f"/flow_runs/{run}")["state"]["type"] == "COMPLETED", "the run")
        assert [name for name, _ in site.states(run)].count("Running") == 1
    finally:
        kill_tree(site.worker)
