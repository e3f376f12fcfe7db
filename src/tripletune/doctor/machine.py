"""Checks of the machine: Python and libraries, disk, memory, GPUs, locale and clock. None imports torch."""

from __future__ import annotations

import locale
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tripletune.config import RunConfig
from tripletune.doctor.check import GIB, Check
from tripletune.errors import UserError
from tripletune.finetune.ranks import asked_ranks
from tripletune.store.paths import read_manifest
from tripletune.store.runs import RunRecord, list_runs

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
"""Versions that the tests ran with; only in a checkout."""
LEAST_DISK = GIB // 2
"""Bytes free below which no run is started: outputs, checkpoints, MLflow and Prefect need room next to each other."""
LEAST_MEMORY = GIB
"""Bytes available below which no run ends: torch, transformers and a tiny model take about that."""


def check_python() -> Check:
    """The interpreter's version, against what the package asks for."""
    wanted = SpecifierSet(str(metadata.metadata("tripletune")["Requires-Python"]))
    if platform.python_version() in wanted:
        return Check("python", "ok", platform.python_version())
    return Check("python", "fail", platform.python_version(), f"install with Python {wanted}: make install")


def extras(settings: RunConfig) -> frozenset[str]:
    """The extras of the package that these settings need."""
    shared = settings.store.shared or os.environ.get("TRIPLETUNE_SHARED_STORE", "")
    addresses = (shared, *settings.source.feed.ratings)
    needed = {
        "s3": any(address.startswith("s3://") for address in addresses),
        settings.workers.kind: settings.workers.kind in ("dask", "ray"),
        "nf4": settings.finetune.quantization == "nf4" or bool(settings.rank.quantized),
        "smollm2": settings.finetune.is_shipped,
        "sentence-transformers": settings.text.names_a_folder,
    }
    return frozenset(name for name, is_needed in needed.items() if is_needed)


def check_libraries(settings: RunConfig, constraints: Path = CONSTRAINTS) -> Check:
    """Installed versions, against those that the package asks for (fail) and that the tests ran with (warn)."""
    wrong, other, count = [], [], 0
    pinned = _pinned(constraints)
    for line in metadata.requires("tripletune") or ():
        wanted = Requirement(line)
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras(settings))):
            continue
        count += 1
        try:
            found = Version(metadata.version(wanted.name))
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name} is {found} and has to be {wanted.specifier}")
        elif pinned.get(wanted.name, found.public) != found.public:
            other.append(f"{wanted.name} {found} in place of {pinned[wanted.name]}")
    advice = "make install, or pip install with -c constraints.txt"
    if wrong:
        return Check("libraries", "fail", ", ".join(wrong), advice)
    if other:
        return Check("libraries", "warn", f"not those of the tests: {', '.join(other)}", advice)
    return Check("libraries", "ok", f"{count} in the versions of {'constraints.txt' if pinned else 'the package'}")


def _pinned(constraints: Path) -> dict[str, str]:
    if not constraints.is_file():
        return {}
    lines = constraints.read_text(encoding="utf-8").split()
    return dict(line.split("==", 1) for line in lines if "==" in line)


def last_run(root: Path, dataset: str) -> RunRecord | None:
    """The newest completed run of a dataset, by which disk and memory are judged."""
    runs = (one for one in reversed(list_runs(root)) if one.dataset == dataset and one.status == "completed")
    return next(runs, None)


def check_disk(root: Path, dataset: str) -> Check:
    """Space for the outputs: at least what the last run of the dataset wrote, should nothing be reused."""
    folder = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        advice = "give --artifacts a folder that can be written"
        return Check("disk", "fail", f"{folder} cannot be written", advice)
    free = shutil.disk_usage(folder).free
    manifests = _manifests(root, dataset)
    needed = sum(file["bytes"] for manifest in manifests for file in manifest["files"].values())
    said = f"{free / GIB:.1f} GiB free in {folder}"
    advice = f"tripletune gc --artifacts {root} lists outputs that can go"
    if free < LEAST_DISK:
        return Check("disk", "fail", f"{said}, and any run needs {LEAST_DISK / GIB:.1f}", advice)
    if needed > free:
        return Check("disk", "warn", f"{said}, and the last run wrote {needed / GIB:.1f}", advice)
    return Check("disk", "ok", said)


def _manifests(root: Path, dataset: str) -> list[dict[str, Any]]:
    run = last_run(root, dataset)
    folders = [root / dataset / stage / value for stage, value in run.fingerprints.items()] if run else []
    return [manifest for folder in folders if (manifest := read_manifest(folder))]


def check_memory(root: Path, dataset: str) -> Check:
    """Main memory, against the largest stage of the dataset's last run."""
    memory = psutil.virtual_memory()
    peaks = {one["stage"]: one["peak_bytes"] for one in _manifests(root, dataset)}
    stage = max(peaks, key=lambda name: peaks[name], default="")
    said = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available"
    if memory.available < LEAST_MEMORY:
        return Check("memory", "fail", f"{said}, and any run needs {LEAST_MEMORY / GIB:.1f}", "end other programs")
    if stage and peaks[stage] > memory.available:
        last = f"{stage} of the last run took {peaks[stage] / GIB:.1f}"
        return Check(
            "memory", "warn", f"{said}, and {last}", "end other programs; tripletune estimate shows a training"
        )
    return Check("memory", "ok", said)


def check_gpus(settings: RunConfig) -> Check:
    """The GPUs that ``nvidia-smi`` lists, against the processes of the training."""
    try:
        asked = asked_ranks(Path(settings.finetune.accelerate_config))
    except UserError as error:
        return Check("gpus", "fail", str(error))
    fields = "--query-gpu=name,memory.used,memory.total"
    command = ["nvidia-smi", fields, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=False)
        cards = [line.split(", ") for line in done.stdout.splitlines() if line] if done.returncode == 0 else []
        broken = "" if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines()[0]
    except FileNotFoundError:
        cards, broken = [], ""
    except subprocess.TimeoutExpired:
        cards, broken = [], "no answer in 20 s"
    if broken:
        return Check("gpus", "fail", f"nvidia-smi: {broken}", "mend the driver, or set use_cpu in the accelerate file")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(cards) if visible is None else min(len(cards), len([one for one in visible.split(",") if one]))
    file = settings.finetune.accelerate_config
    if not asked.use_cpu and asked.here > max(count, 1):
        advice = "set num_processes to auto, or use_cpu to true"
        return Check("gpus", "fail", f"{count} in sight, and {file} asks for {asked.here}", advice)
    return _judge_cards(settings, cards[:count], file)


def _judge_cards(settings: RunConfig, cards: list[list[str]], file: str) -> Check:
    if not cards:
        if settings.finetune.model == "tiny" or settings.finetune.is_shipped or asked_ranks(Path(file)).use_cpu:
            return Check("gpus", "ok", "none, and this model is trained on processors")
        advice = "tripletune estimate says how long it takes here"
        return Check("gpus", "warn", f"none in sight for {settings.finetune.model}", advice)
    said = ", ".join(f"{name} with {total} MiB" for name, _, total in cards)
    if metadata.version("torch").endswith("+cpu"):
        return Check("gpus", "warn", f"{said}, and torch is its CPU build", "pip install torch -c constraints.txt")
    busy = [
        f"{used} of {total} MiB of GPU {place}"
        for place, (_, used, total) in enumerate(cards)
        if 2 * int(used) > int(total)
    ]
    if busy:
        return Check("gpus", "warn", f"{', '.join(busy)} are in use", "end what uses them: nvidia-smi lists it")
    return Check("gpus", "ok", said)


def check_locale() -> Check:
    """Encodings: what is not UTF-8 shows escapes in place of letters, and cannot name every file."""
    streams = {f"std{name}": getattr(sys, f"std{name}").encoding or "" for name in ("out", "err")}
    found = {**streams, "file names": sys.getfilesystemencoding(), "locale": locale.getpreferredencoding(False)}
    other = {name: value for name, value in found.items() if value.lower().replace("-", "") != "utf8"}
    if not other:
        return Check("locale", "ok", "UTF-8")
    said = ", ".join(f"{name} {value}" for name, value in other.items())
    return Check("locale", "warn", f"{said}: titles show escapes", "export PYTHONUTF8=1, or LC_ALL=C.UTF-8")


def check_clock(root: Path) -> Check:
    """The clock, against the newest run's start; names of runs and of champions' versions follow it."""
    now = datetime.now(UTC)
    said = f"{now:%Y-%m-%d %H:%M} UTC, local time {now.astimezone():%H:%M %Z}"
    zone = os.environ.get("TZ", "").removeprefix(":")
    if zone and not zone.startswith("/"):
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError):
            return Check(
                "clock", "warn", f"{said}, and TZ = {zone!r} is no time zone", "export TZ=Europe/London or unset it"
            )
    newest = max((one.started for one in list_runs(root)), default="")
    if newest > now.strftime("%Y-%m-%dT%H:%M:%SZ"):
        advice = "set the clock (timedatectl); until then the latest run is not the newest"
        return Check("clock", "warn", f"{said}, and a run here began at {newest}", advice)
    return Check("clock", "ok", said)
