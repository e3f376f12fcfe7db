"""A training whose MLflow server dies for a minute ends well, and its curve is whole afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from mlflow import MlflowClient

from tests.flows.conftest import ROOT, TRIPLETUNE, MicroRun
from tripletune.store.runs import read_run

OUTAGE = 60.0
"""Seconds without a server."""
EPOCHS = 40.0
"""Enough that the training goes on when the server is back: some two minutes on two cores."""


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str], patience: float = 300.0) -> None:
    deadline = time.monotonic() + patience
    while not ready():
        assert process.poll() is None, "the run ended"
        assert time.monotonic() < deadline
        time.sleep(0.5)


class Server:
    """MLflow's own server on localhost, killed and started again on one port and one store."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self.folder}/server.db"
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1", "--backend-store-uri", store]
        command += ["--artifacts-destination", str(self.folder / "files")]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while not self.answers():
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()[-3000:]
            time.sleep(0.5)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait(60)
            self.process = None


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def losses(uri: str) -> list[tuple[int, float]]:
    """The points of the training's loss that the server has, in its order."""
    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("tripletune")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    found = [run for run in runs if run.data.tags.get("stage") == "finetune"]
    return (
        [(point.step, point.value) for point in client.get_metric_history(found[0].info.run_id, "loss")]
        if found
        else []
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_minute_without_a_server_in_mid_training_costs_no_point_of_the_curve(micro: MicroRun, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(micro.root, root)  # other tests ask for the newest run of the shared one
    config = tmp_path / "long.toml"
    config.write_text(micro.config.read_text().replace("num_train_epochs = 1.0", f"num_train_epochs = {EPOCHS}"))
    with serving(tmp_path) as server, (tmp_path / "run.log").open("w") as log:
        command = [str(TRIPLETUNE), "run", "--config", str(config), "--artifacts", str(root)]
        environment = {**os.environ, "PREFECT_HOME": str(micro.home), "MLFLOW_TRACKING_URI": server.uri}
        run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True)
        try:
            wait_until(lambda: len(losses(server.uri)) >= 3, run)
            server.kill()
            time.sleep(OUTAGE)
            assert not server.answers()
            before = read_run(root)
            assert before.status == "running", "the training is too short for this test"
            assert "finetune" not in before.stages, "the training is too short for this test"
            server.start()
            assert run.wait(3600) == 0, (tmp_path / "run.log").read_text()[-4000:]
        finally:
            run.kill()
        record = read_run(root)
        assert record.status == "completed"
        curve = pl.read_parquet(record.paths(root).folder("finetune") / "curve.parquet")
        wanted = curve.filter(pl.col("metric") == "loss").select("step", "value").sort("step").rows()
        assert len(wanted) > 100
        found = sorted(losses(server.uri))
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in wanted])
