"""Trying again after a network failure, with growing pauses, for as long as something new arrives."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Interrupted(Exception):
    """An attempt broke off in a way that may pass; the message says where and why, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to insist. The pause doubles with each attempt that brings nothing, until one brings something."""

    tries: int = 6
    """Attempts in a row without a new byte after which it is given up; attempts that bring bytes do not count."""
    pause: float = 1.0
    """Seconds before the second attempt."""
    longest_pause: float = 60.0
    """Seconds that a pause never exceeds."""
    timeout: float = 30.0
    """Seconds to wait for a connection, and for the next bytes of one that stands."""


def keep_trying(attempt: Callable[[], T], *, reached: Callable[[], int], patience: Patience) -> T:
    """Call ``attempt`` until it returns.

    Args:
        attempt: raises ``Interrupted`` for what may pass; any other error ends it at once.
        reached: bytes that are there. An attempt after which they are more than ever before was no failure.
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
