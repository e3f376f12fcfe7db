"""The ranks' process group has the timeout of the settings: it is open before the trainer's arguments count."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

RANK = textwrap.dedent(
    """
    import sys, time
    from tripletune.config import FinetuneConfig
    from tripletune.finetune.job import TrainingJob
    from tripletune.finetune.training import _open_group, _own_arguments
    from trl import SFTConfig
    import torch

    settings = FinetuneConfig(ddp_timeout_minutes=float(sys.argv[1]))
    job = TrainingJob(
        out="out", train=(), evaluation=None, base="", hub_revision=None, base_name="", settings=settings, seed=0
    )
    state = _open_group(job, use_cpu=True)
    settings = {"output_dir": sys.argv[2], "use_cpu": True, "bf16": False, "report_to": "none"}
    SFTConfig(**settings)  # sets accelerate's state up again, as in a training
    group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    print("timeout", group.options._timeout.total_seconds(), flush=True)
    if state.process_index == 1:
        time.sleep(float(sys.argv[3]))
    started = time.monotonic()
    try:
        torch.distributed.barrier()
        print("passed", flush=True)
    except RuntimeError:
        print("waited", time.monotonic() - started, flush=True)
    """
)


def outputs(tmp_path: Path, minutes: float, late_seconds: float) -> list[dict[str, str]]:
    """What both of two ranks print, by the first word of a line; the second one is late."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(minutes), str(tmp_path), str(late_seconds)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    lines = [rank.communicate(timeout=300)[0].splitlines() for rank in ranks]
    return [dict(line.split(maxsplit=1) if " " in line else (line, "") for line in found) for found in lines]


@pytest.mark.slow
def test_a_rank_waits_for_the_others_as_long_as_the_settings_say(tmp_path: Path) -> None:
    first, second = outputs(tmp_path, 0.1, 20)
    assert (first["timeout"], second["timeout"]) == ("6.0", "6.0")
    assert 5 <= float(first["waited"]) <= 15
    assert "passed" not in first
