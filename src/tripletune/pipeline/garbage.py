"""Find and remove the stage outputs that no kept run refers to, for ``tripletune gc``.

A run is kept when it is among the newest of its dataset, was named, is running in a live process, or when a kept run
pins its specialists or learns from its adapter or its log. A champion's adapter is kept whoever made it: later runs
start from it, and it holds the record of what its ancestors were trained on, so that these may go. Run files, promotion
decisions and everything in MLflow stay: they are small, and they are the history. Only this machine's artifact root is
looked at: the shared store keeps what is removed here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tripletune.errors import InputError
from tripletune.pipeline.feed import PARSED
from tripletune.store.alive import is_alive
from tripletune.store.champion import standing_outputs
from tripletune.store.paths import MANIFEST, WORK
from tripletune.store.runs import RunRecord, list_runs

NO_STAGES = ("runs", "quality", "promote", "report")


@dataclass(frozen=True, slots=True)
class Removable:
    """A stage's output, or a folder in which a stopped run made or fetched one."""

    dataset: str
    stage: str
    folder: Path
    num_bytes: int


def kept_runs(root: Path, *, newest: int, named: Sequence[str]) -> list[RunRecord]:
    """The runs whose outputs are kept.

    Args:
        root: the artifact root.
        newest: how many of each dataset, at least 1, members of ablation sets not counted.
        named: further runs.

    Raises:
        InputError: a named run, or one that a kept run pins, is not there.
    """
    runs = {run.name: run for run in list_runs(root)}
    by_dataset: dict[str, list[RunRecord]] = {}
    for run in runs.values():
        by_dataset.setdefault(run.dataset, []).append(run)
    wanted = [*named, *(run.name for of_one in by_dataset.values() for run in _newest(of_one, newest))]
    wanted += [run.name for run in runs.values() if is_alive(root, run)]
    kept: dict[str, RunRecord] = {}
    while wanted:
        name = wanted.pop()
        if name in kept:
            continue
        if name not in runs:
            raise InputError(f"no run {name!r} in {root}; runs there: {', '.join(list(runs)[-5:]) or 'none'}")
        kept[name] = runs[name]
        config = runs[name].config
        named_in = (("specialists", "pin"), ("finetune", "teacher"), ("selector", "from_run"))
        pinned = tuple(config.get(section, {}).get(name, "") for section, name in named_in)
        # a pin whose run file is gone protects nothing, and is no reason to stop
        wanted += [one for one in pinned if one in runs]
    return sorted(kept.values(), key=lambda run: (run.started, run.name))


def _newest(runs: Sequence[RunRecord], number: int) -> list[RunRecord]:
    """So many of a dataset's newest runs, oldest first; members of an ablation set do not count, and are kept while an
    older run is."""
    usual = [run for run in runs if not run.is_aside] or list(runs)
    first = usual[-number:][0]
    return [run for run in runs if (run.started, run.name) >= (first.started, first.name)]


def find_garbage(root: Path, kept: Iterable[RunRecord]) -> list[Removable]:
    """Outputs and leftovers under ``root`` that no kept run refers to, by dataset and stage.

    A parsed file of a feed stays while a kept run's ingest was made of it, and a champion's adapter while it is one.
    """
    needed = {run.paths(root).folder(stage) for run in kept for stage in run.fingerprints} | standing_outputs(root)
    feeds = {checksum for folder in needed for checksum in _feed_checksums(folder)}
    found = []
    for folder in _outputs(root):
        finished = _finished(folder)
        is_feed = folder.parent.name == PARSED.name and _made_of(folder).get("file") in feeds
        if finished not in needed and not is_feed:
            found.append(Removable(folder.parents[1].name, folder.parent.name, folder, _size(folder)))
    return found


def _outputs(root: Path) -> Iterator[Path]:
    for stage in sorted(path for path in root.glob("*/*") if path.is_dir()):
        if stage.parent.name not in NO_STAGES and stage.name not in NO_STAGES:
            yield from sorted(path for path in stage.iterdir() if path.is_dir() and _is_output(path))


def _is_output(folder: Path) -> bool:
    """Whether the store made it: a fingerprint's folder, finished or at work. Nothing else is ever touched."""
    name = _finished(folder).name
    is_fingerprint = len(name) == 32 and set(name) <= set("0123456789abcdef")
    return is_fingerprint and (folder.name == name or folder.name.endswith(WORK))


def _finished(folder: Path) -> Path:
    """The finished output that a work folder belongs to; a finished one itself."""
    return folder.with_name(folder.name.split(".")[0])


def _feed_checksums(folder: Path) -> list[str]:
    return [checksum for name, checksum in _made_of(folder).items() if name.startswith("feed/")]


def _made_of(folder: Path) -> dict[str, str]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        inputs: dict[str, str] = manifest["ingredients"]["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return inputs


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def remove(garbage: Iterable[Removable]) -> tuple[list[Removable], list[Removable]]:
    """Remove outputs that no process holds a lock on.

    The manifest goes first: a folder that is half removed counts as not there, and is made again when it is wanted.

    Returns:
        The removed outputs, and those that a run holds at this moment.
    """
    removed, held = [], []
    for one in garbage:
        finished = _finished(one.folder)
        try:
            with FileLock(finished.with_name(f"{finished.name}.lock"), timeout=0):
                (one.folder / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(one.folder)
        except Timeout:
            held.append(one)
            continue
        removed.append(one)
    return removed, held
