"""Control torch's thread count, which is per thread and inherited from whichever thread set it last."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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


def map_blocks(function: Callable[[int], Result], num_blocks: int) -> Iterator[Result]:
    """Compute the blocks 0, 1, ... and give their results in this order, on as many threads as torch takes here.

    Each block has one torch thread and records no gradients, so its bits are the same for any number of threads. Where
    torch takes one thread here, as inside ``one_thread`` or ``map_in_threads``, no other is started. At most two
    results per thread wait to be taken.
    """

    def alone(block: int) -> Result:
        with torch.no_grad():
            return function(block)

    found = torch.get_num_threads()
    if min(found, num_blocks) < 2:
        for block in range(num_blocks):
            with one_thread():
                result = alone(block)
            yield result
        return
    waiting: deque[Future[Result]] = deque()
    try:
        with ThreadPoolExecutor(min(found, num_blocks), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for block in range(num_blocks):
                waiting.append(pool.submit(alone, block))
                if len(waiting) == 2 * found:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(found)  # a thread started later takes over the number that was set last, here 1


def take_all_threads() -> None:
    """Reset the thread count, which this thread may have inherited from another one inside ``one_thread``."""
    torch.set_num_threads(_ALL)
