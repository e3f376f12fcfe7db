"""Seals of training checkpoints, to tell complete ones from partial ones.

The Trainer writes a checkpoint's files one by one under the final name, and removes old ones file by file, so a kill
leaves folders that look like checkpoints. A seal, written last, lists the files with their sizes; a folder without a
seal, or whose files do not match it, is not a checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tripletune.store.files import write_json

SEAL = "complete.json"
_PREFIX = "checkpoint-"


def seal(checkpoint: Path) -> None:
    """Flush a finished checkpoint's files to disk and write its seal."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    write_json(checkpoint / SEAL, {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files})


def is_whole(checkpoint: Path) -> bool:
    """Whether all files of the seal exist with the recorded sizes."""
    try:
        sizes = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def step_of(checkpoint: Path) -> int:
    """Optimiser step of a checkpoint."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def agreed(checkpoint: Path | None, gather: Callable[[list[int]], list[int]]) -> Path | None:
    """The checkpoint to resume from, if all ranks have one of the same step; None, to start over, if not.

    Machines keep checkpoints of their own, and one may have been killed before its last was whole. Ranks of different
    steps would wait for each other for ever.

    Args:
        checkpoint: of this rank.
        gather: joins the lists of all ranks; each must call this.
    """
    steps = set(gather([step_of(checkpoint) if checkpoint else 0]))
    return checkpoint if len(steps) == 1 else None


def last_whole(folder: Path) -> Path | None:
    """Remove partial checkpoints that a kill left; return the newest complete one, if any."""
    if not folder.is_dir():
        return None
    whole = []
    for path in folder.glob(f"{_PREFIX}*"):
        if is_whole(path):
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=step_of, default=None)
