"""Deliver a training's log to a tracking server without the training noticing when that server is slow or down.

A thread of its own calls the server; points that it could not take wait in memory, in order, and are tried again.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping

OnLog = Callable[[int, Mapping[str, float]], None]
"""Takes (step, metrics). It may be called again with a point that it raised for."""
FIRST_PAUSE = 1.0
"""Seconds before a point is tried again; doubled each time up to ``LONGEST_PAUSE``."""
LONGEST_PAUSE = 30.0

log = logging.getLogger(__name__)


class LiveLog:
    """Hands points to ``on_log`` one after the other, in order, each until ``on_log`` has taken it.

    Args:
        on_log: may raise any ``Exception`` and may block; neither reaches the caller of ``put``.
    """

    def __init__(self, on_log: OnLog) -> None:
        self._on_log = on_log
        self._points: deque[tuple[int, Mapping[str, float]]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._given_up = False
        self._warned = False
        self._thread = threading.Thread(target=self._deliver, daemon=True, name="tripletune-live-log")
        self._thread.start()

    def put(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue one point and return at once."""
        with self._changed:
            self._points.append((step, metrics))
            self._changed.notify()

    def close(self, patience: float) -> int:
        """Deliver what is left, for at most ``patience`` seconds; returns how many points could not be delivered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(patience)
        with self._changed:
            self._given_up = True
            self._changed.notify()
            left = len(self._points)
        if left:
            log.warning("%d points of the training's live curve were not delivered; they follow with the output", left)
        return left

    def _deliver(self) -> None:
        pause = FIRST_PAUSE
        while (point := self._next()) is not None:
            try:
                self._on_log(*point)
            except Exception as error:
                self._warn(error)
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
                with self._changed:
                    self._points.popleft()

    def _next(self) -> tuple[int, Mapping[str, float]] | None:
        """The oldest point that was not taken, as soon as there is one; None when there is nothing more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._points or self._closing)
            return self._points[0] if self._points and not self._given_up else None

    def _rest(self, pause: float) -> None:
        """Wait before the next try: ``pause`` seconds while the training runs, ``FIRST_PAUSE`` when it has ended."""
        with self._changed:
            if self._closing:
                self._changed.wait_for(lambda: self._given_up, FIRST_PAUSE)
            else:
                self._changed.wait_for(lambda: self._closing, pause)

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("the live curve of the training cannot be logged (%s); training goes on, and points wait", reason)
