"""Number of ranking processes, and the stage's side of them: start, progress, what went wrong."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tripletune import errors
from tripletune.errors import ConfigError, RankingCrash, UserError
from tripletune.processes.messages import receive
from tripletune.processes.supervise import ProcessFailed, clean_environment, run_supervised
from tripletune.rank.pieces import Answered
from tripletune.rank.workers.job import RankJob
from tripletune.store.files import write_json

log = logging.getLogger(__name__)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",") if named else map(str, range(count))
    return [name.strip() for name in names][:count]


def worker_environments(workers: int | str, gpus: list[str]) -> tuple[dict[str, str], ...]:
    """The environment of each ranking process: one GPU, or none where there are none.

    Args:
        workers: ``rank.workers``; ``auto`` is a process for each GPU, and one without a GPU.
        gpus: of ``visible_gpus``.

    Raises:
        ConfigError: more processes than GPUs.
    """
    number = (len(gpus) or 1) if workers == "auto" else int(workers)
    if gpus and number > len(gpus):
        raise ConfigError(
            f"rank.workers = {number}, but {len(gpus)} GPUs can be seen, and each process takes one; set it to "
            f"'auto' or to at most {len(gpus)}"
        )
    return tuple({"CUDA_VISIBLE_DEVICES": gpus[worker] if gpus else ""} for worker in range(number))


def answer_in_processes(job: RankJob, scratch: Path, note: Path, on_piece: Callable[[], None]) -> Answered:
    """Answer the pieces of a job in a process for each of its environments.

    Args:
        job: what to answer.
        scratch: folder for the job's file.
        note: file for the launcher's identity.
        on_piece: called after each piece.

    Returns:
        Seconds of the process that answered longest, loading not counted, and tokens written by all.

    Raises:
        UserError: one that a process met, of its type.
        RankingCrash: all processes died.
    """
    seconds, tokens = defaultdict[int, float](float), 0
    trouble: list[dict[str, Any]] = []

    def take(line: str) -> bool:
        nonlocal tokens
        message = receive(line)
        if message is None:
            return False
        if message["kind"] == "piece":
            seconds[message["worker"]] += message["seconds"]
            tokens += message["tokens"]
            on_piece()
        else:
            trouble.append(message)
        if message["kind"] == "died":
            log.warning(
                "rank: process %d ended with code %d; %d go on", message["worker"], message["code"], message["left"]
            )
        return True

    write_json(scratch / "job.json", job.model_dump(mode="json"))
    num_workers, on_cpu = len(job.environments), not any(job.environments[0].values())
    try:
        run_supervised(
            [sys.executable, "-m", "tripletune.rank.workers.crew", str(scratch / "job.json")],
            environment=clean_environment(num_workers, on_cpu),
            note=note,
            deadline_seconds=math.inf,
            on_line=take,
        )
    except ProcessFailed as failure:
        raise _explain(failure, trouble, num_workers) from None
    return Answered(max(seconds.values(), default=0.0), tokens)


def _explain(failure: ProcessFailed, trouble: list[dict[str, Any]], num_workers: int) -> UserError:
    for message in trouble:
        if message["kind"] == "error":
            kind: type[UserError] = getattr(errors, message["type"])
            return kind(message["message"])
    codes = ", ".join(str(message["code"]) for message in trouble if message["kind"] == "died")
    tail = "\n  ".join(failure.tail)
    return RankingCrash(
        f"all {num_workers} ranking processes died (exit codes {codes or 'unknown'}); run again to go on with the "
        f"pieces that are left; the last lines were:\n  {tail}"
    )
