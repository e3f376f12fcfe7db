"""What a long training says of itself: a line in the log now and then, the same at a terminal and in a scheduler."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

SECONDS = 15.0
"""Between two lines. A training that is over sooner says nothing."""


class Progress:
    """Call it after every step.

    Args:
        what: is trained.
        step: taken before; steps that another process took do not count in the pace.
        num_steps: at most.
    """

    def __init__(self, what: str, step: int, num_steps: int) -> None:
        self._what, self._first, self._num_steps = what, step, num_steps
        self._started = self._last = time.monotonic()

    def __call__(self, step: int, loss: float, best_ndcg: float) -> None:
        """Say where the training is, when the last line is old enough.

        Args:
            step: just taken.
            loss: of this step.
            best_ndcg: on valid; negative when nothing was evaluated.
        """
        now = time.monotonic()
        if now - self._last < SECONDS:
            return
        self._last = now
        pace = (step - self._first) / (now - self._started)
        best = f", best valid ndcg@10 {best_ndcg:.4f}" if best_ndcg >= 0 else ""
        log.info(
            "%s: step %d of at most %d, loss %.4f%s, %.2f steps/s, %s left at most",
            *(self._what, step, self._num_steps, loss, best, pace, _duration((self._num_steps - step) / pace)),
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
