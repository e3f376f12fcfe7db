"""CPU seconds by step of a running program, without a change to it: functions are replaced by ones that keep time."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any


class Steps:
    """CPU seconds of the threads that call the watched functions, each without those of watched ones it calls.

    What polars does in its own threads is in no step; the process's total has it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock, self._local = threading.Lock(), threading.local()

    def watch(self, owner: Any, name: str, step: str) -> None:
        """Keep time of ``owner.name`` (a function of a module, or a method of a class) under the name of a step."""
        setattr(owner, name, self.timed(getattr(owner, name), step))

    def timed(self, function: Callable[..., Any], step: str) -> Callable[..., Any]:
        """The function, keeping time."""
        self.seconds.setdefault(step, 0.0)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            stack = self._local.__dict__.setdefault("inner", [])
            stack.append(0.0)
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent, inner = time.thread_time() - start, stack.pop()
                if stack:
                    stack[-1] += spent
                with self._lock:
                    self.seconds[step] += spent - inner

        return wrapper
