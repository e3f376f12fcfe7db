"""Progress lines of a long training in the log, the same at a terminal and in a scheduler."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

SECONDS = 15.0
"""Time between two lines; a shorter training logs none."""


class Progress:
    """Progress logger, to be called after every step.

    Args:
        what: name of the training.
        step: steps taken before; steps of an earlier process do not count in the pace.
        num_steps: steps at most.
    """

    def __init__(self, what: str, step: int, num_steps: int) -> None:
        self._what, self._first, self._num_steps = what, step, num_steps
        self._started = self._last = time.monotonic()

    def __call__(self, step: int, loss: float, best_ndcg: float) -> None:
        """Log the progress when the last line is old enough.

        Args:
            step: the one just taken.
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
