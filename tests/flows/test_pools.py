"""Two machines that share object storage and a Prefect server alone: one makes the shards, the other trains and ranks.

Each is a copy of the tree with a working directory, artifacts and an MLflow store of its own; the release lies on the
first alone.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.conftest import MICRO, ROOT
from tests.flows.test_worker import PREFECT, answers, wait_until
from tests.s3 import Bucket, environment, serve
from tripletune.config import SyntheticConfig
from tripletune.store.paths import read_manifest
from tripletune.synthetic.release import write_release

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CONFIG = "configs/micro.toml"


class Machine:
    """A checkout, and the environment of its commands."""

    def __init__(self, root: Path, shared: dict[str, str]) -> None:
        self.root = root
        for name in ("src", "flows", "tasks", "configs"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copyfile(ROOT / "prefect.yaml", root / "prefect.yaml")
        (root / CONFIG).write_text(MICRO + '\n[source]\nmovielens = "release"\n')
        self.env = {**os.environ, **shared, "TRIPLETUNE_HOME": str(root), "PYTHONPATH": f"{root / 'src'}:{root}"}

    def call(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, cwd=self.root, env=self.env, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return done

    def tripletune(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.call(sys.executable, "-m", "tripletune.cli.main", *arguments, check=False)

    def deploy(self, *names: str) -> None:
        named = [part for name in names for part in ("--name", name)]
        self.call(PREFECT, "--no-prompt", "deploy", *named)

    def run(self, deployment: str, **parameters: str) -> subprocess.CompletedProcess[str]:
        given = [part for key, value in parameters.items() for part in ("--param", f"{key}={value}")]
        return self.call(PREFECT, "deployment", "run", deployment, "--watch", *given, check=False)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        log = (self.root / "log").open("ab")
        return subprocess.Popen(command, cwd=self.root, env=self.env, stdout=log, stderr=log)

    def outputs(self) -> dict[str, Path]:
        """Folders of the finished outputs by stage."""
        found = (path for path in (self.root / "artifacts" / "micro").glob("*/*") if read_manifest(path) is not None)
        return {path.parent.name: path for path in found}


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Machine, Bucket]]:
    """A machine with the release that serves the pool cpu, one that serves the pool gpu, and what they share."""
    folder = tmp_path_factory.mktemp("machines")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    with serve() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(endpoint).items():
            patch.setenv(name, value)
        bucket = Bucket(endpoint)
        shared = {**environment(endpoint), "TRIPLETUNE_SHARED_STORE": bucket.url("pre"), "PREFECT_API_URL": api}
        shared["PREFECT_HOME"] = str(folder / "prefect")
        cpu, gpu = (Machine(folder / name, shared) for name in ("cpu", "gpu"))
        write_release(cpu.root / "release", SyntheticConfig(viewers=120, movies=100, mean_ratings=40), seed=3)
        running = [cpu.start(PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port))]
        try:
            wait_until(lambda: answers(f"{api}/health"), "the server")
            for machine, pool in ((cpu, "cpu"), (gpu, "gpu")):
                machine.call(PREFECT, "work-pool", "create", pool, "--type", "process")
                running.append(machine.start(PREFECT, "worker", "start", "--pool", pool))
            cpu.deploy("nightly-pools", "generate-shards")
            gpu.deploy("finetune-llama", "rank-models")
            yield cpu, gpu, bucket
        finally:
            for process in reversed(running):
                process.terminate()
                process.wait(timeout=60)


def test_shards_of_one_machine_are_trained_on_and_ranked_by_another(machines: tuple[Machine, Machine, Bucket]) -> None:
    cpu, gpu, bucket = machines
    done = cpu.run("tripletune-nightly-pools/nightly-pools", config=CONFIG)
    said = "".join(f"\n{machine.root.name}: " + (machine.root / "log").read_text()[-8000:] for machine in (cpu, gpu))
    assert done.returncode == 0, done.stdout[-3000:] + said
    (key,) = (key for key in bucket.names() if key.startswith("pre/runs/"))
    record = json.loads(bucket.get(key))
    assert record["status"] == "completed"
    here, there = cpu.outputs(), gpu.outputs()
    assert not {"finetune", "rank", "evaluate"} & here.keys()
    assert {"generate", "finetune", "rank", "evaluate"} <= there.keys()
    assert "knowledge" not in there  # no stage of the second machine reads it
    assert (here["generate"] / "manifest.json").read_bytes() == (there["generate"] / "manifest.json").read_bytes()
    parts = ("generate", "finetune", "rank", "evaluate", "promote")
    assert {record["stages"][stage] for stage in parts} == {"made"}
    shown = cpu.tripletune("show", record["name"])
    assert shown.returncode == 0, shown.stderr
    assert "completed" in shown.stdout


def test_a_name_that_no_machine_has_fails_the_deployment(machines: tuple[Machine, Machine, Bucket]) -> None:
    _, gpu, _ = machines
    assert gpu.run("tripletune-finetune-llama/finetune-llama", config=CONFIG, run="micro-none").returncode != 0
    assert "no run 'micro-none' in artifacts or s3://" in (gpu.root / "log").read_text()
