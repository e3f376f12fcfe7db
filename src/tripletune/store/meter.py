"""Measure seconds and peak memory of a piece of work with its child processes; refuse work that cannot fit."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

import psutil

from tripletune.errors import InputError

log = logging.getLogger(__name__)


def claim_memory(what: str, needed: int, advice: str, free: int | None = None) -> None:
    """Log the memory that a piece of work needs before it starts, and refuse it where less is free.

    Args:
        what: the work, and its size.
        needed: bytes at its peak.
        advice: which setting to lower.
        free: bytes available; None: what main memory has available now.

    Raises:
        InputError: less is free.
    """
    if free is None:
        free = psutil.virtual_memory().available
    log.info("%s: %.2f GiB of memory, %.2f GiB are free", what, needed / 2**30, free / 2**30)
    if needed > free:
        raise InputError(
            f"{what} needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are free; {advice}"
        )


class Meter:
    """Context manager; ``seconds`` and ``peak_bytes`` are set when the block ends.

    ``peak_bytes`` is the largest resident size seen of this process and its children together, sampled ten times a
    second, so a short spike between two samples is missed and pages that processes share are counted in each.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="tripletune-meter")

    def __enter__(self) -> Meter:
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak_bytes = max(self.peak_bytes, total)
            if self._done.wait(0.1):
                return
