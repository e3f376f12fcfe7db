"""Tie a process to the one that started it, even when that one is killed with SIGKILL: a training to its stage, and a
flow run to its worker.

An orphan would go on writing into a folder that the next run holds. Two safeguards of a training: the kernel kills a
rank when its launcher dies (Linux), and a thread ends the rank when the supervising stage is gone, after which the
launcher sees a failed rank and ends itself and the others.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

import psutil

SUPERVISOR = "TRIPLETUNE_SUPERVISOR"
"""Environment variable ``<pid> <create time>`` of the stage's process."""
ORPHANED = 75
"""Exit code of a rank whose supervisor is gone."""
_POLL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_CLOCK_SLACK = 2.0
_LEAVE_SECONDS = 60.0
"""Time to close runs and to end children after SIGTERM; a training's launcher alone may take 30 s (``supervise``)."""


def describe(process: psutil.Process) -> str:
    """``<pid> <create time>``: a process id alone may have been given to another process since."""
    return f"{process.pid} {process.create_time()}"


def find(description: str) -> psutil.Process | None:
    """The process of that description, or None when it has ended (a zombie has)."""
    pid, created = description.split()
    try:
        process = psutil.Process(int(pid))
        alive = abs(process.create_time() - float(created)) < _CLOCK_SLACK and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if alive else None


def hold() -> None:
    """Tie this process to its launcher and to the stage named in the environment; without one, do nothing."""
    description = os.environ.get(SUPERVISOR)
    if description is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _leave_if_orphaned(description)
    threading.Thread(target=_watch, args=(description,), daemon=True, name="tripletune-lifeline").start()


def end_with_parent() -> None:
    """End this process with SIGTERM soon after its parent has ended, and outright where that does not help.

    For a flow run's process: one whose worker was killed would go on unseen, and nobody could cancel it.
    """
    parent = psutil.Process().parent()
    if parent is not None:
        description = describe(parent)
        threading.Thread(target=_follow_parent, args=(description,), daemon=True, name="tripletune-lifeline").start()


def _follow_parent(description: str) -> None:
    while find(description) is not None:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LEAVE_SECONDS)
    os._exit(ORPHANED)


def _watch(description: str) -> None:
    while True:
        time.sleep(_POLL_SECONDS)
        _leave_if_orphaned(description)


def _leave_if_orphaned(description: str) -> None:
    if find(description) is None:
        os._exit(ORPHANED)  # no clean-up: whatever is half written must look half written
