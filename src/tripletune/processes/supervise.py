"""Run a launcher and every process it starts, and leave none of them behind.

accelerate and torchrun end their ranks on SIGTERM within seconds, but a launcher that is killed outright leaves them
(they have process groups of their own). So: an own session, SIGTERM on any way out, a grace period, then the tree of
processes noted while it was alive. The launcher's identity is noted on disk for a later run of the same folder.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from tripletune.processes import lifeline
from tripletune.store.files import write_json

GRACE_SECONDS = 30.0
"""Time for a launcher to end its ranks after SIGTERM."""
_ORPHAN_SECONDS = 2.0
_TAIL_LINES = 15
_NOTE_SECONDS = 1.0

log = logging.getLogger(__name__)


class ProcessFailed(Exception):
    """The launcher failed or overran its deadline; ``tail`` holds its last lines."""

    def __init__(self, summary: str, tail: Sequence[str], *, overran: bool = False) -> None:
        super().__init__(summary)
        self.tail = tuple(tail)
        self.overran = overran


def run_supervised(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    note: Path,
    deadline_seconds: float,
    on_line: Callable[[str], bool],
) -> None:
    """Run a command to its end, passing on each line of its output.

    Args:
        command: the launcher and its arguments.
        environment: the whole environment; the supervisor's identity is added.
        note: file for the launcher's identity. A launcher that an earlier, killed run noted there is ended first.
        deadline_seconds: wall time after which everything is ended.
        on_line: called with each line of output (standard error included); returns whether it took the line, which
            then goes neither to the log nor to the tail.

    Raises:
        ProcessFailed: exit code other than 0, or the deadline passed. No process of the tree is left in any case.
    """
    end_noted(note)
    identity = lifeline.describe(psutil.Process())
    process = subprocess.Popen(
        command,
        env={**environment, lifeline.SUPERVISOR: identity},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    tree: set[psutil.Process] = set()
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        launcher = psutil.Process(process.pid)
        tree.add(launcher)
        write_json(note, {"launcher": lifeline.describe(launcher)})
        _follow(process, tree, tail, time.monotonic() + deadline_seconds, on_line)
    finally:
        end_tree(tree)
        process.wait()
        note.unlink(missing_ok=True)
    if process.returncode != 0:
        raise ProcessFailed(f"exit code {process.returncode}", tail)


def _follow(
    process: subprocess.Popen[str],
    tree: set[psutil.Process],
    tail: deque[str],
    deadline: float,
    on_line: Callable[[str], bool],
) -> None:
    """Pass on output and note the tree until the launcher ends and its output is read."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    assert process.stdout is not None
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True, name="tripletune-output").start()
    next_note = 0.0
    ended_at: float | None = None
    while True:
        now = time.monotonic()
        if now >= deadline:
            raise ProcessFailed("the deadline passed", tail, overran=True)
        if now >= next_note:
            tree |= _descendants(tree)
            next_note = now + _NOTE_SECONDS
        if process.poll() is not None:
            ended_at = ended_at or now
        # a pipe that is still open was inherited by something else, whose lines are waited for but not for ever
        since_end = now - ended_at if ended_at is not None else 0.0
        if since_end > GRACE_SECONDS:
            return
        try:
            line = lines.get(timeout=0.1)
        except queue.Empty:
            if since_end > _NOTE_SECONDS:
                return
            continue
        if line is None:
            process.wait(timeout=max(0.1, deadline - now))
            return
        if line and not on_line(line):
            tail.append(line)
            log.info("%s", line)


def _read(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        lines.put(line.rstrip())
    lines.put(None)


def _descendants(processes: set[psutil.Process]) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for process in processes:
        try:
            found.update(process.children(recursive=True))
        except psutil.Error:
            continue
    return found


def end_tree(tree: set[psutil.Process]) -> None:
    """SIGTERM to the launchers of a tree (those whose parent is not in it) and time to clean up; then end the rest."""
    tree = {process for process in tree | _descendants(tree) if process.is_running()}
    ids = {process.pid for process in tree}
    launchers = [process for process in tree if _parent(process) not in ids]
    _signal(launchers, psutil.Process.terminate)
    psutil.wait_procs(launchers, timeout=GRACE_SECONDS)
    left = [process for process in tree if process.is_running()]
    _signal(left, psutil.Process.terminate)
    _, left = psutil.wait_procs(left, timeout=_ORPHAN_SECONDS)
    _signal(left, psutil.Process.kill)
    psutil.wait_procs(left, timeout=GRACE_SECONDS)


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _signal(processes: Sequence[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            send(process)
        except psutil.Error:
            continue


def end_noted(note: Path) -> None:
    """End the launcher that an earlier run noted, if it still lives, with everything below it."""
    try:
        description = json.loads(note.read_text(encoding="utf-8"))["launcher"]
    except (OSError, ValueError, KeyError):
        return
    process = lifeline.find(description)
    if process is not None:
        log.warning("a process started by an earlier run is still alive (pid %d); ending it first", process.pid)
        end_tree({process})
    note.unlink(missing_ok=True)


def clean_environment(num_processes: int, use_cpu: bool) -> dict[str, str]:
    """This process's environment without the variables of another launcher, and with the cores shared between ranks."""
    scrubbed = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in scrubbed and not key.startswith(("TORCHELASTIC_", "ACCELERATE_"))
    }
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads cost tenfold when the cores are shared
    environment |= {"PYTHONUNBUFFERED": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "true"}
    if use_cpu:
        # accelerate's launcher for several processes does not hand `use_cpu` on
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return environment
