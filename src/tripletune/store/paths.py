"""The artifact store: paths of the stages' outputs, and publishing each exactly once.

``<root>/<dataset>/<stage>/<fingerprint>/`` holds a finished output. A stage works in ``<fingerprint>.work`` under a
file lock, writes ``manifest.json`` last, and is renamed into place; a valid manifest means done. A second run that
wants the same output waits on the lock and then reuses it. A work folder left by a killed run is handed to the next
one as it is, so a stage that finishes its files one by one (temporary name, then a rename) goes on where it was.

With a shared store (``store.shared``) an output that is finished there and not here is fetched when it is asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from filelock import FileLock

from tripletune.errors import MissingArtifactError
from tripletune.store.files import make_folder, remove_leftovers, sync, write_json, writing_to
from tripletune.store.fingerprint import Ingredients, sha256_file
from tripletune.store.meter import Meter

if TYPE_CHECKING:
    from tripletune.store.shared import SharedOutput

MANIFEST = "manifest.json"
SCRATCH = "_scratch"
"""Folder inside a work folder for what must survive a kill but is not part of the output; removed before publishing."""

WORK = ".work"
"""Ending of the folders in which an output is made or fetched; what stands before the first dot is its fingerprint."""

Facts = dict[str, Any]
"""Counts and metrics that a stage reports in addition to its files; plain JSON data."""


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished folder, or None when there is none or a file it names is gone or has another size."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, file in manifest["files"].items():
            if (folder / name).stat().st_size != file["bytes"]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest


def whoami() -> str:
    """Host and process id, kept in the manifest: a run that waited for another one sees that it reused its output."""
    return f"{socket.gethostname()}:{os.getpid()}"


def damaged_files(folder: Path) -> list[str]:
    """Names of the files whose bytes no longer have the SHA-256 that the manifest states."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return [
        name
        for name, file in manifest["files"].items()
        if not (folder / name).is_file() or sha256_file(folder / name) != file["sha256"]
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPaths:
    """Where the stages of one run read and write.

    Args:
        root: the artifact root.
        dataset: name of the dataset; runs of one dataset share outputs.
        fingerprints: one per stage; made by ``pipeline.resolve``.
        ingredients: what each fingerprint was made of; stands in the manifests.
        shared: address of the shared store, from ``runs.shared_store``; empty: there is none.
    """

    root: Path
    dataset: str
    fingerprints: Mapping[str, str]
    ingredients: Mapping[str, Ingredients] = field(default_factory=dict)
    shared: str = ""

    def folder(self, stage: str) -> Path:
        """Where the stage's finished output is, or will be.

        Raises:
            MissingArtifactError: the run has no such stage.
        """
        if stage not in self.fingerprints:
            raise MissingArtifactError(f"this run has no {stage!r}; an older version made it: run it again")
        return self.root / self.dataset / stage / self.fingerprints[stage]

    def is_here(self, stage: str) -> bool:
        """Whether the stage's output is finished and whole on this machine (sizes are checked, hashes are not)."""
        return read_manifest(self.folder(stage)) is not None

    def is_shared(self, stage: str) -> bool:
        """Whether there is a shared store that has the stage's output; InputError where it cannot be asked."""
        return bool(self.shared) and self._in_store(stage).is_there()

    def is_done(self, stage: str) -> bool:
        """Whether the stage's output is finished: here, or in the shared store, from which it is then fetched.

        Raises:
            InputError: the shared store cannot be read, or its output is damaged: nothing was published here.
        """
        return self.is_here(stage) or self._fetch(stage)

    def require(self, stage: str) -> Path:
        """The folder of a finished stage; raises InputError like ``is_done``.

        Raises:
            MissingArtifactError: it has not finished; the message gives the command that produces it.
        """
        folder = self.folder(stage)
        if not self.is_done(stage):
            places = f"{folder} and {self.shared}" if self.shared else folder
            raise MissingArtifactError(
                f"no finished '{stage}' output for this config and input (looked in {places}); "
                f"produce it with: tripletune {stage}, with the same --config, --movielens, --imdb and --artifacts"
            )
        return folder

    def share(self, stage: str) -> None:
        """Push a finished output to the shared store, where there is one and it lacks it; raises like ``is_done``."""
        if self.shared:
            self._in_store(stage).push(self.folder(stage))

    def _in_store(self, stage: str) -> SharedOutput:
        from tripletune.store.shared import SharedOutput  # imports what only a shared store needs

        return SharedOutput(self.shared, self.dataset, stage, self.folder(stage).name)

    def _fetch(self, stage: str) -> bool:
        if not self.is_shared(stage):
            return False
        folder = self.folder(stage)
        with _alone(folder):
            if read_manifest(folder) is None:
                work = folder.with_name(f"{folder.name}.fetch{WORK}")
                self._in_store(stage).fetch(work)
                _publish(work, folder)
        return True

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a finished stage; raises MissingArtifactError like ``require``."""
        manifest = read_manifest(self.require(stage))
        assert manifest is not None
        return manifest

    def build(self, stage: str, make: Callable[[Path], Facts]) -> Path:
        """Reuse the stage's output, or make it.

        Args:
            stage: its name.
            make: fills the work folder it is given (which may hold what a killed run finished) and returns facts.

        Returns:
            The finished folder. When ``make`` raises, the work folder stays as it is.

        Raises:
            InputError: the store's folders cannot be made.
        """
        folder = self.folder(stage)
        if self.is_done(stage):
            return folder
        with _alone(folder):
            if read_manifest(folder) is not None:
                return folder
            work = folder.with_name(f"{folder.name}{WORK}")
            make_folder(work, "--artifacts")
            (work / MANIFEST).unlink(missing_ok=True)  # of a run killed during publish: its files are rebuilt
            remove_leftovers(work)
            with Meter() as meter:
                facts = make(work)
            self._describe(stage, work, facts, meter)
            _publish(work, folder)
        return folder

    def assist(self, stage: str, machine: int, help_to_make: Callable[[Path], object]) -> None:
        """Help to make an output that another machine publishes.

        Args:
            stage: its name.
            machine: number of this machine, 1 or more; names a work folder and a lock of its own, so that machines may
                share a disk.
            help_to_make: fills the work folder it is given. When it raises, the folder stays for the next try.
        """
        folder = self.folder(stage)
        mine = folder.with_name(f"{folder.name}.machine{machine}{WORK}")
        with _alone(mine):
            make_folder(mine, "--artifacts")
            help_to_make(mine)
            shutil.rmtree(mine)

    def _describe(self, stage: str, work: Path, facts: Facts, meter: Meter) -> None:
        """Write the manifest of a work folder, last of all."""
        shutil.rmtree(work / SCRATCH, ignore_errors=True)
        remove_leftovers(work)
        ingredients = self.ingredients.get(stage, {})
        files = {
            path.relative_to(work).as_posix(): _described(path)
            for path in sorted(work.rglob("*"))
            if path.is_file() and path.name != MANIFEST and path.suffix != ".part"
        }
        for name in files:
            sync(work / name)
        manifest = {
            "stage": stage,
            "dataset": self.dataset,
            "fingerprint": self.fingerprints[stage],
            "parents": ingredients.get("parents", {}),
            "ingredients": ingredients,
            "files": files,
            "facts": facts,
            "made_by": whoami(),
            "seconds": round(meter.seconds, 3),
            "peak_bytes": meter.peak_bytes,
            "tripletune": metadata.version("tripletune"),
        }
        write_json(work / MANIFEST, manifest)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder that is about to be made; another process that wants it waits."""
    make_folder(folder.parent, "--artifacts")
    with writing_to(folder.parent, "--artifacts"):
        held = FileLock(folder.with_name(f"{folder.name}.lock")).acquire()
    with held:
        yield


def _publish(work: Path, folder: Path) -> None:
    """Rename a whole work folder into place, instead of a damaged output: files that its manifest names are gone."""
    if folder.exists():
        shutil.rmtree(folder)
    work.rename(folder)
    sync(folder.parent)


def _described(path: Path) -> dict[str, Any]:
    described: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if path.suffix == ".parquet":
        parquet = pq.ParquetFile(path)
        described["rows"] = parquet.metadata.num_rows
        described["schema"] = {field.name: str(field.type) for field in parquet.schema_arrow}
    return described
