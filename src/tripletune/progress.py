"""Progress of long work: lines in the log at sane intervals, a live line on a terminal, and whoever watches.

All long work reports here, so that it reads the same everywhere: a percentage, counts, and the time that is left at the
pace of this process. A terminal shows one live line for each piece of work in place of the log's lines.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

log = logging.getLogger(__name__)

SHORTEST = 30.0
"""Seconds between two lines at least; work that takes less writes none."""
LONGEST = 300.0
"""Seconds after which a line follows although less than ``SHARE`` was done."""
SHARE = 0.1
"""Share of the work after which a line follows, once ``SHORTEST`` has passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How far a piece of work is."""

    what: str
    done: int
    total: int
    unit: str
    seconds_left: float | None
    """At the pace of this process; None before its first unit."""
    at_most: bool = False
    note: str = ""

    @property
    def percent(self) -> float:
        """Between 0 and 100; of work whose size is not known yet, 0."""
        return min(100.0, 100 * self.done / self.total) if self.total else 0.0

    def __str__(self) -> str:
        if not self.total:
            return f"{self.what}: begins"
        most = " at most" if self.at_most else ""
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left{most}"
        counts = f"{self.done:,} of {self.total:,} {self.unit}"
        return f"{self.what}: {self.percent:.0f} %, {counts}{left}{'; ' if self.note else ''}{self.note}"


Watcher = Callable[[Reached], None]
"""Called when a line is due, and once more when work that had a line ends. It must return soon and not raise."""
_watcher: ContextVar[Watcher | None] = ContextVar("tripletune_progress_watcher", default=None)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Report the progress of work that begins inside the block to ``watcher`` too."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


class Progress:
    """Progress of one piece of work, as a context manager around it.

    Args:
        what: name of the work.
        total: units of it; 0 where ``begin`` will say.
        done: units done before, which do not count in the pace.
        unit: what is counted, in the plural.
        at_most: whether the work may end before ``total``, as a training that stops early.
        clock: seconds, as ``time.monotonic`` gives them.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        done: int = 0,
        unit: str = "steps",
        at_most: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit, self._at_most, self._clock = what, total, unit, at_most, clock
        self._first = self._done = self._shown = done
        self._note = ""
        self._started = self._last = clock()
        self._has_line = False
        self._watcher = _watcher.get()
        self._bar: TaskID | None = None

    def __enter__(self) -> Progress:
        self._bar = _screen.open(self._reached())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _screen.close(self._bar)
        if self._has_line and error is None and self._watcher:
            if self._at_most:
                self._total = self._done  # it stopped early: all there was to do is done
            self._watcher(self._reached())

    def begin(self, done: int, total: int) -> None:
        """Say where the work begins, and its size, where that shows only when it runs."""
        self._first = self._done = self._shown = done
        self._total, self._started = total, self._clock()

    def advance(self, number: int = 1, note: str = "") -> None:
        """Count further units; ``note`` stands behind the counts."""
        self.reach(self._done + number, note)

    def reach(self, done: int, note: str = "") -> None:
        """Say how many units are done; without a ``note`` the last one stays."""
        self._done, self._note = done, note or self._note
        reached = self._reached()
        _screen.draw(self._bar, reached)
        if self._is_due():
            self._last, self._shown, self._has_line = self._clock(), done, True
            log.info("%s", reached)
            if self._watcher:
                self._watcher(reached)

    def _is_due(self) -> bool:
        quiet = self._clock() - self._last
        return quiet >= SHORTEST and (quiet >= LONGEST or self._done - self._shown >= SHARE * self._total)

    def _reached(self) -> Reached:
        took, taken = self._clock() - self._started, self._done - self._first
        left = took / taken * max(0, self._total - self._done) if taken > 0 else None
        return Reached(
            what=self._what,
            done=self._done,
            total=self._total,
            unit=self._unit,
            seconds_left=left,
            at_most=self._at_most,
            note=self._note,
        )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as ``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Screen:
    """The terminal's live lines, one for each piece of work that runs; on anything but a terminal there are none.

    The log must be printed through ``console`` while they are shown, or it would be drawn into them.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.is_quiet = False
        self._bars: Bars | None = None
        self._number = 0
        self._lock = threading.Lock()

    @property
    def is_live(self) -> bool:
        """Whether lines are shown now."""
        return self._bars is not None

    def open(self, reached: Reached) -> TaskID | None:
        """Show a line; None where none is shown."""
        if self.is_quiet or not self.console.is_terminal:
            return None
        with self._lock:
            if self._bars is None:
                self._bars = Bars(TextColumn("{task.description}"), BarColumn(20), console=self.console, transient=True)
                self._bars.start()
            self._number += 1
            return self._bars.add_task(str(reached), total=100.0, completed=round(reached.percent))

    def draw(self, bar: TaskID | None, reached: Reached) -> None:
        """Renew a line."""
        if self._bars is not None and bar is not None:
            self._bars.update(bar, description=str(reached), completed=reached.percent)

    def close(self, bar: TaskID | None) -> None:
        """Remove a line; the last one ends the live display."""
        if bar is None:
            return
        with self._lock:
            assert self._bars is not None
            self._bars.remove_task(bar)
            self._number -= 1
            if not self._number:
                self._bars.stop()
                self._bars = None


_screen = Screen()


def screen() -> Screen:
    """The one screen of this process."""
    return _screen
