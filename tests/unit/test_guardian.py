"""A killed run leaves nothing running, not even what it started in a session of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

PARENT = """
import subprocess, sys, time
from tripletune.processes.guardian import guard_this_process
guard_this_process()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
time.sleep(1.2)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_sigkill_of_a_guarded_process_ends_its_detached_children_and_the_guardian():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    detached = psutil.Process(int(parent.stdout.readline()))
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 2  # the child and the guardian
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert not detached.is_running()


def test_the_guardian_of_a_process_that_ends_well_ends_too():
    code = "from tripletune.processes.guardian import guard_this_process as g; import os, psutil, time\n"
    code += "g(); time.sleep(1)\n"
    code += "print(psutil.Process().children()[0].pid)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
