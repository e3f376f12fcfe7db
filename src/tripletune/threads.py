"""How many threads torch takes: each thread's own number, which a new thread takes over from whoever set it last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

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


def take_all_threads() -> None:
    """Undo what this thread may have taken over from a neighbour that was inside ``one_thread``."""
    torch.set_num_threads(_ALL)
