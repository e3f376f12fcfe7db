"""Launcher of the ranking processes: ``python -m tripletune.rank.workers.crew <job.json>``.

A process that dies costs its piece, which another one takes. The launcher ends with the first process that finds all
pieces done, with the first that meets an error of the user's (the others would meet it too), or with the last one to
die.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tripletune.processes import lifeline
from tripletune.processes.messages import send
from tripletune.rank.workers.job import RankJob

_LOOK_SECONDS = 0.05
_OF_THE_USER = 2


def main(argv: list[str]) -> int:
    """Start a process for each environment of the job in the file ``argv[0]`` and wait; exit code 1 when all died."""
    lifeline.hold()
    job = RankJob.model_validate_json(Path(argv[0]).read_bytes())
    running = {
        number: subprocess.Popen(
            [sys.executable, "-m", "tripletune.rank.workers.worker", argv[0], str(number)],
            env={**os.environ, **environment},
        )
        for number, environment in enumerate(job.environments)
    }
    try:
        return _wait(running)
    finally:
        for process in running.values():
            process.terminate()


def _wait(running: dict[int, subprocess.Popen[bytes]]) -> int:
    while running:
        ended = {number: process.poll() for number, process in running.items()}
        for number, code in ended.items():
            if code in (0, _OF_THE_USER):
                return code
            if code is not None:
                del running[number]
                send("died", {"worker": number, "code": code, "left": len(running)})
        time.sleep(_LOOK_SECONDS)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
