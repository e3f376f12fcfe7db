"""A training over two machines, as two process groups on this one: nothing is shared but the address they meet at."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.finetune_shards import PROMPT_CONTRACT, write_shards
from tests.flows.conftest import ROOT
from tests.flows.test_finetune import SETTINGS
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.ranks import read_ranks

pytestmark = pytest.mark.slow

TAKE_PART = """
import json, logging, sys
from pathlib import Path
from tests.finetune_shards import PROMPT_CONTRACT
from tripletune.config import FinetuneConfig
from tripletune.finetune.launch import finetune_adapter
from tripletune.store.paths import RunPaths
logging.basicConfig(level=logging.INFO, format="%(message)s")
root, settings, machine = Path(sys.argv[1]), FinetuneConfig.model_validate_json(sys.argv[2]), int(sys.argv[3])
paths = RunPaths(root=root / "artifacts", dataset="toy", fingerprints={"finetune": "0123456789abcdef" * 2})
def make(work):
    return finetune_adapter(root / "shards", work, settings, PROMPT_CONTRACT, {}, 0, machine=machine)
paths.assist("finetune", machine, make) if machine else paths.build("finetune", make)
"""
"""What ``tripletune finetune`` and ``tripletune join`` do once shards are there."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Machine:
    """A folder with shards, artifacts and an accelerate file of its own, in which processes take part."""

    def __init__(self, root: Path, number: int, port: int) -> None:
        self.root, self.number = root, number
        write_shards(root / "shards", train=24, valid=8, test=1, long=False)
        file = yaml.safe_load((ROOT / "configs/accelerate/machines.yaml").read_text())
        file |= {"main_process_ip": "127.0.0.1", "main_process_port": port, "use_cpu": True, "mixed_precision": "no"}
        (root / "machines.yaml").write_text(yaml.safe_dump(file))
        assert read_ranks(root / "machines.yaml").number == 2
        changes = {"accelerate_config": str(root / "machines.yaml"), "global_batch": 8, "save_steps": 5}
        changes |= {"per_device_train_batch_size": 4, "keep": "best", "eval_steps": 4}
        self.settings = SETTINGS.model_copy(update=changes)

    @property
    def outputs(self) -> Path:
        return self.root / "artifacts" / "toy" / "finetune"

    def start(self) -> subprocess.Popen[str]:
        arguments = [str(self.root), self.settings.model_dump_json(), str(self.number)]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", TAKE_PART, *arguments],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def machines(tmp_path: Path) -> list[Machine]:
    port = free_port()
    return [Machine(tmp_path / f"machine-{number}", number, port) for number in range(2)]


def train(machines: list[Machine]) -> None:
    running = [machine.start() for machine in machines]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)


def one_machine(tmp_path: Path, like: Machine) -> dict[str, torch.Tensor]:
    """Weights of two processes on one machine."""
    shutil.copyfile(ROOT / "configs/accelerate/cpu-2.yaml", tmp_path / "cpu-2.yaml")
    settings = like.settings.model_copy(update={"accelerate_config": str(tmp_path / "cpu-2.yaml")})
    (tmp_path / "one").mkdir()
    facts = finetune_adapter(like.root / "shards", tmp_path / "one", settings, PROMPT_CONTRACT, {}, 0)
    assert facts["world_size"] == 2
    return load_file(tmp_path / "one" / "adapter" / "adapter_model.safetensors")


def published(machine: Machine) -> Path:
    return machine.outputs / ("0123456789abcdef" * 2) / "adapter" / "adapter_model.safetensors"


def test_two_machines_train_what_two_processes_of_one_train_and_the_first_publishes(
    tmp_path: Path, machines: list[Machine]
) -> None:
    train(machines)
    ours, theirs = load_file(published(machines[0])), one_machine(tmp_path, machines[0])
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)
    # the other machine published nothing, and left nothing behind but its lock
    assert [path.name for path in machines[1].outputs.iterdir() if path.is_dir()] == []


def test_machines_that_were_killed_go_on_from_their_own_checkpoints(tmp_path: Path, machines: list[Machine]) -> None:
    for machine in machines:  # longer, so that the kill comes before its end
        machine.settings = machine.settings.model_copy(update={"num_train_epochs": 40})
    running = [machine.start() for machine in machines]
    sealed = "*.work/_scratch/checkpoints/checkpoint-*/complete.json"
    deadline = time.monotonic() + 200
    while not all(list(machine.outputs.glob(sealed)) for machine in machines):
        assert time.monotonic() < deadline, "no checkpoint on both machines"
        time.sleep(0.02)
    for process in running:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not published(machines[0]).exists()
    time.sleep(3)  # the killed ranks hold the port for a moment
    train(machines)
    manifest = (machines[0].outputs / ("0123456789abcdef" * 2) / "manifest.json").read_text()
    assert '"resumed_from_step": 0' not in manifest
    ours, theirs = load_file(published(machines[0])), one_machine(tmp_path, machines[0])
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)
