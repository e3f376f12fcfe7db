"""Whether the process of a run still lives: it holds a lock from the run's start to its end.

The kernel frees the lock however the process ends, SIGKILL and power loss included, so there is no process id to
compare, which another process, or one of another machine, may have.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout

from tripletune.store.runs import RunRecord

WITHOUT_LOCK = timedelta(days=2)
"""How long a running run counts as alive that has no lock, since an older version started it."""
_LOOK_SECONDS = 5.0
"""A look at the lock takes milliseconds, and is nothing to warn of."""

log = logging.getLogger(__name__)


@contextmanager
def holding(root: Path, name: str) -> Iterator[None]:
    """Mark a run as alive while the block runs; where another process has it, wait for its end first.

    Two processes have one run where a part of it is started again while the first try still lives.

    Args:
        root: the artifact root.
        name: of the run; its folder ``runs`` exists.
    """
    lock = FileLock(_path(root, name))
    try:
        lock.acquire(timeout=_LOOK_SECONDS)
    except Timeout:
        log.warning("run %s is going on in another process; waiting for its end", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def taken_if_dead(root: Path, record: RunRecord) -> Iterator[bool]:
    """Whether a run stands as running and no process has it; if so, none can take it while the block runs.

    Args:
        root: the artifact root.
        record: one of its runs.
    """
    path = _path(root, record.name)
    if record.status != "running" or (not path.is_file() and _is_young(record)):
        yield False
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_alive(root: Path, record: RunRecord) -> bool:
    """Whether a run stands as running and, as far as can be known, its process lives."""
    with taken_if_dead(root, record) as is_dead:
        return record.status == "running" and not is_dead


def _path(root: Path, name: str) -> Path:
    return root / "runs" / f".{name}.alive"


def _is_young(record: RunRecord) -> bool:
    try:
        return datetime.now(UTC) - datetime.fromisoformat(record.started) < WITHOUT_LOCK
    except ValueError:
        return True
