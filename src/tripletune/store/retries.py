"""Retry after network failures, with growing pauses, for as long as new bytes arrive."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Interrupted(Exception):
    """A transient failure of an attempt; the message gives place and reason in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Retry limits. The pause doubles with each fruitless attempt and is reset by one that brings bytes."""

    tries: int = 6
    """Fruitless attempts in a row before giving up; attempts that bring new bytes do not count."""
    pause: float = 1.0
    """Seconds before the second attempt."""
    longest_pause: float = 60.0
    """Longest pause in seconds."""
    timeout: float = 30.0
    """Seconds to wait for a connection, and for the next bytes of an open one."""


def keep_trying(attempt: Callable[[], T], *, reached: Callable[[], int], patience: Patience) -> T:
    """Call ``attempt`` until it returns.

    Args:
        attempt: raises ``Interrupted`` for a transient failure; any other error is raised at once.
        reached: number of bytes on disk. An attempt that raises it above its maximum so far is not fruitless.
        patience: when to give up.

    Raises:
        Interrupted: the last one, when ``patience.tries`` attempts in a row brought nothing new.
    """
    most, fruitless = reached(), 0
    while True:
        try:
            return attempt()
        except Interrupted as error:
            now = reached()
            fruitless = 0 if now > most else fruitless + 1
            most = max(most, now)
            if fruitless >= patience.tries:
                raise
            pause = min(patience.longest_pause, patience.pause * 2 ** max(0, fruitless - 1))
            log.info("%s; again in %g s", error, pause)
            time.sleep(pause)
