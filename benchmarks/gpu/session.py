"""One measurement on a GPU machine: deadline, facts of the machine, its two ceilings, and results that survive a cut.

    with Session("gpu_graph", torch.device("cuda"), Path("gpu_graph.json"), minutes=9) as session:
        session.measure_ceilings()
        session.record("training", train())

The JSON file is rewritten after every ``record``, so an error, a kill or the deadline loses only what was not
recorded yet. ``ended`` says how it ended: ``running`` (killed from outside), ``complete``, ``deadline`` or
``error: ...``. At the deadline the process exits with code 3, whatever it is doing: a thread writes the file, and where
even that is held up, faulthandler's own thread ends the process a little later.

Ceilings are measured on this card, because datasheet rates are seldom reached: a copy within the device's memory (bytes
read plus bytes written) and a product of two square bfloat16 matrices (2 n^3 operations), on random data, since zeros
run faster than data does. Warm-up first, then the median of several rounds; on a GPU each is timed by events of the
device, so that launch and Python stay out.
"""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

MAX_MINUTES = 12.0
MAX_MINUTES_CPU = 1440.0
DEFAULT_MINUTES = 9.0
"""A GPU machine that stops a command after 10 minutes still gets the file."""
EXIT_DEADLINE = 3
GRACE_SECONDS = 20.0
"""After the deadline, for the thread that writes the file; then faulthandler ends the process without it."""
WARM_UPS, ROUNDS = 3, 20
COPY_BYTES = {"cuda": 1 << 31, "cpu": 1 << 27}
PRODUCT_SIZE = {"cuda": 8192, "cpu": 512}
TINY_COPY_BYTES, TINY_PRODUCT_SIZE = 1 << 20, 64


class Session:
    """Context manager around a measurement; see the head of this file.

    Args:
        name: of the script, as the JSON file has it.
        out: the JSON file; replaced.
        minutes: from here until the process is ended, at most ``MAX_MINUTES``, on a CPU ``MAX_MINUTES_CPU``.
        is_tiny: measure the ceilings in a size that takes no time, to see that the script runs.
    """

    def __init__(
        self, name: str, device: torch.device, out: Path, minutes: float = DEFAULT_MINUTES, is_tiny: bool = False
    ) -> None:
        longest = MAX_MINUTES if device.type == "cuda" else MAX_MINUTES_CPU
        if not 0 < minutes <= longest:
            raise SystemExit(f"{name}: --minutes must be above 0 and at most {longest:g}, got {minutes:g}")
        self.device, self.is_tiny = device, is_tiny
        self._name, self._out, self._seconds = name, out, 60 * minutes
        self._lock, self._start, self._has_ended = threading.RLock(), time.monotonic(), False
        self.page: dict[str, Any] = {
            "script": name,
            "command": shlex.join(["python", *sys.argv]),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "minutes_allowed": minutes,
            "tiny": is_tiny,
            "ended": "running",
            "seconds": 0.0,
            "environment": {},
            "results": {},
        }
        """What the JSON file holds."""

    def __enter__(self) -> Session:
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._timer = threading.Timer(self._seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()
        faulthandler.dump_traceback_later(self._seconds + GRACE_SECONDS, exit=True, file=sys.__stderr__ or 2)
        self.page["environment"] = environment(self.device)
        self._write()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._lock:
            self._has_ended = True
            self._timer.cancel()
            faulthandler.cancel_dump_traceback_later()
            self.page["ended"] = "complete" if kind is None else f"error: {kind.__name__}: {error}"
            self._write()

    @property
    def seconds_left(self) -> float:
        """Until the deadline; what does not fit into it is better not begun."""
        return self._start + self._seconds - time.monotonic()

    def record(self, name: str, result: Any) -> None:
        """Add a result, anything that JSON can hold, and write the file."""
        with self._lock:
            self.page["results"][name] = result
            self._write()

    def measure_ceilings(self) -> None:
        """Record ``copy`` (GB/s) and ``bf16_product`` (TFLOP/s) of the device: the first two measurements."""
        kind = self.device.type
        num_bytes = TINY_COPY_BYTES if self.is_tiny else COPY_BYTES[kind]
        self.record("copy", copy_rate(self.device, num_bytes))
        size = TINY_PRODUCT_SIZE if self.is_tiny else PRODUCT_SIZE[kind]
        self.record("bf16_product", bf16_product_rate(self.device, size))

    def _write(self) -> None:
        self.page["seconds"] = round(time.monotonic() - self._start, 3)
        partial = self._out.with_name(f".{self._out.name}.partial")
        partial.write_text(json.dumps(self.page, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._out)

    def _cut(self) -> None:
        with self._lock:
            if self._has_ended:
                return
            self.page["ended"] = "deadline"
            self._write()
            done = ", ".join(self.page["results"]) or "nothing"
            print(f"{self._name}: cut at its deadline; measured so far: {done}", file=sys.stderr, flush=True)
            os._exit(EXIT_DEADLINE)


def copy_rate(device: torch.device, num_bytes: int) -> dict[str, Any]:
    """Copy between two tensors of so many bytes each; GB/s counts bytes read and written."""
    source = torch.randn(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = time_rounds(lambda: target.copy_(source), device)
    return {"gb_per_s": _rates(2 * num_bytes / 1e9, seconds), "bytes": num_bytes, "rounds": len(seconds)}


def bf16_product_rate(device: torch.device, size: int) -> dict[str, Any]:
    """Multiply two ``size`` x ``size`` bfloat16 matrices; TFLOP/s counts 2 size^3 operations."""
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    seconds = time_rounds(lambda: torch.matmul(left, right, out=out), device)
    return {"tflop_per_s": _rates(2 * size**3 / 1e12, seconds), "size": size, "rounds": len(seconds)}


def time_rounds(
    work: Callable[[], Any], device: torch.device, rounds: int = ROUNDS, warm_ups: int = WARM_UPS
) -> list[float]:
    """Seconds of each round, after ``warm_ups`` that do not count; on a GPU by the device's own events."""
    for _ in range(warm_ups):
        work()
    if device.type != "cuda":
        return [_by_clock(work) for _ in range(rounds)]
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in marks:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) / 1000 for start, end in marks]


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest: a difference between two versions within this range is noise."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure must stand next to: card, driver, CUDA, torch, Python, processor and the commit, where known."""
    facts: dict[str, Any] = {"device": device.type, "card": None, "driver": None, "cuda": torch.version.cuda}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        facts |= {"card": card.name, "memory_gib": round(card.total_memory / 2**30, 1)}
        facts |= {"capability": f"{card.major}.{card.minor}", "multiprocessors": card.multi_processor_count}
        facts["driver"] = _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    facts |= {"torch": str(torch.__version__), "python": platform.python_version(), "machine": platform.machine()}
    facts |= {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 2)}
    return facts | {"commit": _first_line("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD")}


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines()
    return lines[0] if lines else None


def _by_clock(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _rates(amount: float, seconds: list[float]) -> dict[str, float]:
    return spread([amount / one for one in seconds])
