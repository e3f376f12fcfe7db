"""How many threads torch takes: each thread's own number, which a new thread takes over from whoever set it last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
_ALL = torch.get_num_threads()
"""As the process began, before anybody asked for one."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for what torch does inside; on more, the last bits of long sums come out differently."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def num_threads(most: int) -> int:
    """As many as torch would take, ``most`` at the most."""
    return min(_ALL, most)


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item], most: int) -> list[Result]:
    """The results in the order of the items, made in ``num_threads(most)`` threads.

    Each has one torch thread of its own, so a result is the same whatever their number. The first error ends it.
    """

    def alone(item: Item) -> Result:
        with one_thread():
            return function(item)

    with ThreadPoolExecutor(num_threads(most)) as pool:
        return list(pool.map(alone, items))


def take_all_threads() -> None:
    """Undo what this thread may have taken over from a neighbour that was inside ``one_thread``."""
    torch.set_num_threads(_ALL)
