"""Files that appear whole or not at all: written under a temporary name, flushed to disk, renamed into place."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tripletune.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, flush it to disk and rename it into place."""
    write_atomically(path, lambda part: part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def write_atomically(path: Path, write: Callable[[Path], object], *, unique: bool = False) -> None:
    """Let ``write`` fill a temporary neighbour of ``path``, flush it to disk and rename it into place.

    Args:
        path: the file.
        write: writes to the path it is given.
        unique: another process may be writing the same file now: give the neighbour a name of its own.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part" if unique else f".{path.name}.part")
    write(part)
    sync(part)
    part.replace(path)
    sync(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; a writer that is still at one fails at its rename."""
    for leftover in folder.rglob(".*.part"):
        leftover.unlink(missing_ok=True)


def make_folder(folder: Path, option: str) -> None:
    """Make a folder for output, and those above it.

    Args:
        folder: may be there already.
        option: of the command line, with which the user names another.

    Raises:
        InputError: nothing can be written there.
    """
    with writing_to(folder, option):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing_to(folder: Path, option: str) -> Iterator[None]:
    """Turn an OSError into one line for the user; wraps the creation of an output folder, not writing into it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot write {folder} ({reason}); name another folder with {option}") from None


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
