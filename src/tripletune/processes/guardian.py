"""End the processes that a killed run would leave behind.

Prefect starts a temporary server with a flow, and stops it when Python exits; SIGKILL leaves it running for ever. The
guardian is a small process of its own, ``python -m tripletune.processes.guardian PID``, that records every process
below PID. Its standard input is a pipe which the kernel closes when PID ends for any reason; the guardian then ends
the processes that are left.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys

import psutil

LOOK_SECONDS = 0.5
GRACE_SECONDS = 10.0


def guard_this_process() -> None:
    """Start a guardian of this process; it ends by itself soon after this process has ended."""
    subprocess.Popen(
        [sys.executable, "-m", "tripletune.processes.guardian", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # what is sent to our group, such as Ctrl-C, is not meant for it
    )


def watch(pid: int) -> None:
    """Record the processes below ``pid`` until standard input closes, then terminate those that still run."""
    family: dict[int, psutil.Process] = {}
    guarded = psutil.Process(pid)
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        with contextlib.suppress(psutil.Error):
            family |= {child.pid: child for child in guarded.children(recursive=True)}
    family.pop(os.getpid(), None)
    # is_running compares the start time as well: a number given to a new process is left alone
    left = [process for process in family.values() if process.is_running()]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(left, timeout=GRACE_SECONDS)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()


if __name__ == "__main__":
    watch(int(sys.argv[1]))
