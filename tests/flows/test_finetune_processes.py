"""Whatever way training ends, none of its processes is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tripletune.processes import lifeline
from tripletune.processes.supervise import ProcessFailed, run_supervised

CHILD = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(600)"
RANK = "from tripletune.processes import lifeline; lifeline.hold(); " + CHILD
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1]])"


def run(tmp_path: Path, script: str, *arguments: str, deadline: float = 60) -> None:
    run_supervised(
        [sys.executable, "-c", script, *arguments],
        environment=os.environ,
        note=tmp_path / "launcher.json",
        deadline_seconds=deadline,
        on_line=lambda line: False,
    )


def pids(file: Path, count: int, timeout: float = 20.0) -> list[int]:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = [int(line) for line in file.read_text().split()] if file.is_file() else []
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{count} processes did not start")


def gone(pid: int, timeout: float = 10.0) -> bool:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_a_hanging_script_and_its_children_are_ended_by_the_deadline(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    with pytest.raises(ProcessFailed, match="deadline") as caught:
        run(tmp_path, LAUNCHER, str(noted), CHILD, deadline=1.5)
    assert caught.value.overran
    assert all(gone(pid) for pid in pids(noted, 1))


def test_a_child_that_outlives_a_failed_launcher_is_ended(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    leave = "import subprocess, sys, time; " + (
        "subprocess.Popen([sys.executable, '-c', sys.argv[2], sys.argv[1]], start_new_session=True); "
        "time.sleep(2.5); raise SystemExit(1)"
    )
    with pytest.raises(ProcessFailed):
        run(tmp_path, leave, str(noted), CHILD)
    assert all(gone(pid) for pid in pids(noted, 1))


def test_a_stage_killed_outright_leaves_no_process(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    stage = textwrap.dedent(
        f"""
        import os, sys
        from pathlib import Path
        from tripletune.processes.supervise import run_supervised
        run_supervised([sys.executable, "-c", {LAUNCHER!r}, {str(noted)!r}, {RANK!r}], environment=os.environ,
                       note=Path({str(tmp_path / "launcher.json")!r}), deadline_seconds=60, on_line=lambda line: False)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", stage])
    rank = pids(noted, 1)[0]
    launcher = psutil.Process(rank).ppid()
    parent.send_signal(signal.SIGKILL)
    assert gone(rank)
    assert gone(launcher)
    parent.wait()


def test_a_rank_dies_with_its_launcher(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    identity = lifeline.describe(psutil.Process())
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(noted), RANK], env={**os.environ, lifeline.SUPERVISOR: identity}
    )
    rank = pids(noted, 1)[0]
    launcher.kill()
    launcher.wait()
    assert gone(rank)
