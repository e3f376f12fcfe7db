"""Finished outputs and run files in object storage, for machines that share no disk.

``<address>/<dataset>/<stage>/<fingerprint>/`` holds an output: each file under its SHA-256, and ``manifest.json``,
uploaded last, so that an output without one is not finished. A manifest that is there is never replaced, and files
under their hash cannot mix: whichever of two machines that push at once is first, what its manifest names is there.
``<address>/runs/<run>.json`` holds a run's file.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tripletune.errors import InputError
from tripletune.store.files import write_atomically
from tripletune.store.fingerprint import sha256_file
from tripletune.store.objects import Store, append_rest, gives_up
from tripletune.store.paths import MANIFEST, damaged_files
from tripletune.store.retries import Patience, keep_trying

PATIENCE = Patience(tries=4)
"""A store that does not answer is asked for 7 seconds; an attempt that brings bytes begins the count again."""
_BAR_FROM = 16 << 20
"""Bytes of a transfer from which a terminal shows a progress bar."""
_LONGEST = 64 << 20
"""Bytes of a manifest or a run's file; a longer one is none of ours."""

Report = Callable[[int], object]
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _File:
    """A file that a manifest names."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SharedOutput:
    """A stage's output in the shared store, whether it is there or not."""

    address: str
    dataset: str
    stage: str
    fingerprint: str

    @property
    def url(self) -> str:
        """Its folder."""
        return f"{self.address}/{self.dataset}/{self.stage}/{self.fingerprint}"

    @property
    def _manifest(self) -> str:
        return f"{self.url}/{MANIFEST}"

    def is_there(self) -> bool:
        """Whether the store has it, finished.

        Raises:
            InputError: the store cannot be asked; so do the other methods.
        """
        return _trying(Store(self._manifest).find) is not None

    def push(self, folder: Path) -> bool:
        """Upload a finished output, unless the store has it; goes on where a killed one was.

        Args:
            folder: holds the output.

        Returns:
            Whether it was uploaded.

        Raises:
            InputError: a file no longer has the bytes of its manifest.
        """
        if self.is_there():
            return False
        if damaged := damaged_files(folder):
            raise InputError(f"{folder / damaged[0]} is damaged; remove {folder} and run again")
        files = self._files((folder / MANIFEST).read_bytes())
        with _transfer(f"{self.stage} to {self.address}", files) as report:
            for file in files:
                store = Store(f"{self.url}/{file.sha256}")
                there = _trying(store.find)
                if there is None or there.size != file.size:
                    _put(store, folder / file.name, report)
            _put(Store(self._manifest), folder / MANIFEST)
        return True

    def fetch(self, work: Path) -> None:
        """Download the output, each file checked by its SHA-256; goes on where a killed one was.

        Args:
            work: folder to fill; what it holds and the manifest does not name is removed. The caller renames it.

        Raises:
            InputError: the store has no such output, or a damaged one; or ``work`` cannot be written.
        """
        content = _read(self._manifest)
        if content is None:
            raise InputError(f"{self._manifest} was removed while it was read; run it again")
        files = self._files(content)
        try:
            _remove_others(work, {work / file.name for file in files})
            with _transfer(f"{self.stage} from {self.address}", files) as report:
                for file in files:
                    self._download(file, work / file.name, report)
            write_atomically(work / MANIFEST, lambda part: part.write_bytes(content))
        except OSError as error:
            raise InputError(f"cannot write {work} ({error.strerror or error}); make room and run it again") from None

    def _download(self, file: _File, target: Path, report: Report) -> None:
        if target.is_file() and sha256_file(target) == file.sha256:
            report(file.size)
            return
        url = f"{self.url}/{file.sha256}"
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _part(target)
        part.touch()
        entry = _trying(Store(url).find)
        if entry is None or entry.size != file.size:
            found = "is not there" if entry is None else f"has {entry.size:,} bytes"
            raise self._damaged(f"{file.name} ({url}) {found}, and it has {file.size:,} bytes in the manifest")
        _trying(lambda: append_rest(url, entry.version, file.size, part, report), lambda: part.stat().st_size)
        if sha256_file(part) != file.sha256:
            part.unlink()
            raise self._damaged(f"{file.name} ({url}) has other bytes than its SHA-256 says")
        write_atomically(target, part.replace)

    def _files(self, content: bytes) -> list[_File]:
        """The files of a manifest, which is data from elsewhere: a name must not lead out of the folder."""
        try:
            manifest = json.loads(content)
            for key in ("dataset", "stage", "fingerprint"):
                if manifest[key] != getattr(self, key):
                    raise ValueError(f"{key} is {manifest[key]!r}")
            files = [_checked(name, **described) for name, described in manifest["files"].items()]
            _refuse_files_as_folders({file.name for file in files})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise self._damaged(f"the manifest cannot be used ({reason})") from None
        return files

    def _damaged(self, what: str) -> InputError:
        return InputError(
            f"{self.url} is damaged: {what}; delete this folder in the store and run the stage again, where its "
            "output is finished or can be made"
        )


def _checked(name: str, bytes: int, sha256: str, **more: object) -> _File:
    """A file's entry in a manifest; the parameters are its keys.

    Raises:
        ValueError: it is not what ``RunPaths`` writes.
    """
    parts = name.split("/")
    is_plain = name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(parts)
    if not is_plain or name == MANIFEST or name.endswith(".part"):
        raise ValueError(f"{name!r} is no name of a file below the folder")
    if type(bytes) is not int or bytes < 0 or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"{name!r} has no size and SHA-256")
    return _File(name, bytes, sha256)


def _refuse_files_as_folders(names: set[str]) -> None:
    for name in names:
        parts = name.split("/")
        if any("/".join(parts[:depth]) in names for depth in range(1, len(parts))):
            raise ValueError(f"{name!r} lies below a file")


def _part(target: Path) -> Path:
    """What has arrived of a file; ``write_atomically`` gives it the same name."""
    return target.with_name(f".{target.name}.part")


def _remove_others(work: Path, wanted: set[Path]) -> None:
    """Remove what an earlier fetch into this folder left, but for these files and what arrived of them; and links,
    through which one would be written elsewhere."""
    kept = {*wanted, *map(_part, wanted)}
    for path in work.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path in kept):
            path.unlink()


def push_run(address: str, file: Path) -> None:
    """Write a run's file to the store, in place of an earlier one; raises like ``SharedOutput.is_there``."""
    _put(Store(f"{address}/runs/{file.name}"), file)


def fetch_run(address: str, name: str) -> bytes | None:
    """Content of a run's file, None where the store has none; raises like ``SharedOutput.is_there``."""
    return _read(f"{address}/runs/{name}.json")


def _read(url: str) -> bytes | None:
    store = Store(url)
    entry = _trying(store.find)
    if entry is None:
        return None
    if entry.size > _LONGEST:
        raise InputError(f"{url} has {entry.size:,} bytes and is no file of tripletune; delete it there")
    return _trying(lambda: b"".join(store.chunks(first=0)))


def _put(store: Store, path: Path, report: Report = lambda num_bytes: None) -> None:
    _trying(lambda: store.upload(path, report))


def _trying(attempt: Callable[[], T], reached: Callable[[], int] = lambda: 0) -> T:
    with gives_up("run it again: what is finished stays"):
        return keep_trying(attempt, reached=reached, patience=PATIENCE)


@contextmanager
def _transfer(what: str, files: list[_File]) -> Iterator[Report]:
    """Show the progress of a large transfer on a terminal, and log one line at its end."""
    total, started, console = sum(file.size for file in files), time.perf_counter(), Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    is_shown = total >= _BAR_FROM and console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not is_shown) as progress:
        bar = progress.add_task(what, total=total)
        yield lambda num_bytes: progress.advance(bar, num_bytes)
    seconds = time.perf_counter() - started
    log.info("%s: %d files, %.1f MiB in %.1f s", what, len(files), total / 2**20, seconds)
