"""Control torch's thread count, which is per thread and inherited from whichever thread set it last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
_ALL = torch.get_num_threads()
"""The count when the process began, before any call to ``one_thread``."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside the block; with more, the last bits of long sums differ."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def num_threads(most: int) -> int:
    """Torch's own thread count, at most ``most``."""
    return min(_ALL, most)


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item], most: int) -> list[Result]:
    """Map a function over items in ``num_threads(most)`` threads; results are in the order of the items.

    Each has one torch thread, so a result does not depend on their number. The first error is raised.
    """

    def alone(item: Item) -> Result:
        with one_thread():
            return function(item)

    with ThreadPoolExecutor(num_threads(most)) as pool:
        return list(pool.map(alone, items))


def take_all_threads() -> None:
    """Reset the thread count, which this thread may have inherited from another one inside ``one_thread``."""
    torch.set_num_threads(_ALL)
