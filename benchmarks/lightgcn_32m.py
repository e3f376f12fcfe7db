"""One epoch of LightGCN on 32 million ratings: its seconds, where they go, its memory, and what the machine allows.

    python benchmarks/lightgcn_32m.py                   # makes a synthetic ml-32m release and its split first
    python benchmarks/lightgcn_32m.py --split FOLDER    # or takes the output of a finished split stage

An epoch is one pass over the users of fit B, ``viewers / batch_viewers`` steps, each with one propagation over the
whole graph and one update of every parameter. Each setting runs in a process of its own; its peak is the kernel's
(ru_maxrss) and holds all that the process did, reading the split included. Then the parts of a step are timed alone.

What the machine allows: a step must move, for each of its four sums over the graph (two forward, two backward), the
index of every edge. How much of the vectors it must move depends on what caches hold: at least every table once (the
lower limit), at most a row of ``dim`` floats for every edge (the upper limit). Both are divided by the bandwidth of a
copy measured in the same process. Results go to benchmarks/lightgcn_32m.md.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console

from tripletune.config import IngestConfig, LightGCNConfig, SplitConfig
from tripletune.data.release.movielens import ingest_release
from tripletune.data.split.write import write_split
from tripletune.models.lightgcn.fit import LightGCNTrainer
from tripletune.models.training.interactions import read_interactions

SEED = 7
REPORT = Path(__file__).with_name("lightgcn_32m.md")
GIB = 2**30
COPY_BYTES = 1 << 30
SETTINGS: dict[str, dict[str, Any]] = {
    "all films": {"sampled_films": 0},
    "8,192 sampled": {"sampled_films": 8192},
    "all films, weighted edges": {"edge_half_life": 20.0},
}
"""What is measured: name, and the settings of ``[lightgcn]`` that depart from the defaults."""


def measure(split: Path, changes: dict[str, Any], max_steps: int) -> dict[str, Any]:
    """Train for an epoch, or ``max_steps`` if that is less, in this process; what the report needs."""
    settings = LightGCNConfig.model_validate({"device": "cpu"} | changes)
    load, read = os.getloadavg()[0], _Clock()
    interactions = read_interactions(split)
    read.stop()
    likes = interactions.fits["b"]
    build = _Clock()
    trainer = LightGCNTrainer(likes, interactions.num_movies, settings, SEED)
    build.stop()
    epoch = -(-likes.num_viewers // settings.batch_viewers)
    steps = min(epoch, max_steps or epoch)
    seconds, training = [], _Clock()
    for _ in range(steps):
        start = time.perf_counter()
        loss = trainer.step()
        seconds.append(time.perf_counter() - start)
    training.stop()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "threads": torch.get_num_threads(),
        "load": load,
        "viewers": likes.num_viewers,
        "movies": interactions.num_movies,
        "likes": likes.user_E.numel(),
        "read_seconds": read.wall,
        "build_seconds": build.wall,
        "epoch": epoch,
        "steps": steps,
        "wall": training.wall,
        "cpu": training.cpu,
        "median_step": statistics.median(seconds),
        "loss": loss,
        "peak_gib": peak,
        "parts": parts_of_a_step(trainer),
        "copy_gib_s": copy_bandwidth(),
        "traffic": traffic(likes.user_E.numel(), likes.num_viewers, interactions.num_movies, settings),
    }


class _Clock:
    """Wall and CPU seconds from its making to ``stop``."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu


def parts_of_a_step(trainer: LightGCNTrainer) -> dict[str, float]:
    """Median CPU seconds of a propagation forth and back, and of an update; the rest of a step is the loss."""

    def propagate() -> None:
        movies_MD, pool_MD = trainer._vectors()
        (movies_MD.sum() + pool_MD.sum()).backward()  # type: ignore[no-untyped-call]

    return {"propagation": _median(propagate).cpu, "optimiser": _median(trainer._optimizer.step).cpu}


def _median(work: Callable[[], object], times: int = 5) -> _Clock:
    work()
    clocks = []
    for _ in range(times):
        clocks.append(_Clock())
        work()
        clocks[-1].stop()
    return sorted(clocks, key=lambda clock: clock.wall)[times // 2]


def copy_bandwidth() -> float:
    """GiB/s of a copy of an array far larger than any cache, read and written bytes counted."""
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / GIB / _median(lambda: target.copy_(source)).wall


def traffic(num_likes: int, num_viewers: int, num_movies: int, settings: LightGCNConfig) -> dict[str, float]:
    """GiB that a step's sums over the graph must move: lower limit, and upper limit without any cache."""
    row = 4 * settings.dim
    tables = (num_viewers + num_movies) * row  # of one sum: one is read, the other written
    index = num_likes * (4 + 4 * bool(settings.edge_half_life))
    sums = 4 * (settings.layers // 2)
    return {"lower": sums * (index + tables) / GIB, "upper": sums * (index + num_likes * row + tables) / GIB}


def report(results: dict[str, dict[str, Any]], told: str) -> str:
    """The tables, in Markdown."""
    one, defaults = next(iter(results.values())), LightGCNConfig()
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "dgl", "polars"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / GIB:.0f} GiB"
    lines = [
        "# One epoch of LightGCN on 32 million ratings",
        "",
        "What is measured and how: the head of `lightgcn_32m.py`.",
        "",
        f"{machine}; Python {platform.python_version()}, {libraries}, {one['threads']} thread(s), load before the run "
        f"{one['load']:.1f} (above 1, wall seconds are those of a shared machine)",
        f"`python benchmarks/lightgcn_32m.py`; release: {told}",
        f"Fit B: {one['viewers']:,} viewers, {one['movies']:,} films, {one['likes']:,} likes; defaults of `[lightgcn]` "
        f"(width {defaults.dim}, {defaults.layers} layers, batches of {defaults.batch_viewers:,} viewers): "
        f"{one['epoch']} steps to an epoch.",
        "",
        "| | steps run | wall s per step (median) | wall s per epoch | CPU s per epoch | peak GiB | last loss |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, result in results.items():
        scale = result["epoch"] / result["steps"]
        mark = "" if scale == 1 else " (extrapolated)"
        lines.append(
            f"| {name} | {result['steps']} | {result['median_step']:.2f} | {result['wall'] * scale:.0f}{mark} "
            f"| {result['cpu'] * scale:.0f}{mark} | {result['peak_gib']:.2f} | {result['loss']:.3f} |"
        )
    lines += [
        "",
        "Where a step's CPU seconds go (all threads together), and in what wall time its sums over the graph could be",
        "done, by the copy:",
        "",
        "| | propagation, forth and back | loss, pooling, batch | optimiser | must move GiB, at least / without caches "
        "| copy GiB/s | limit s, at least / without caches |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, result in results.items():
        parts, moved, copy = result["parts"], result["traffic"], result["copy_gib_s"]
        rest = result["cpu"] / result["steps"] - parts["propagation"] - parts["optimiser"]
        lines.append(
            f"| {name} | {parts['propagation']:.2f} | {rest:.2f} | {parts['optimiser']:.3f} "
            f"| {moved['lower']:.2f} / {moved['upper']:.1f} | {copy:.1f} "
            f"| {moved['lower'] / copy:.2f} / {moved['upper'] / copy:.2f} |"
        )
    lines += [
        "",
        f"Reading the split took {one['read_seconds']:.1f} s, building the graph {one['build_seconds']:.1f} s, once.",
    ]
    return "\n".join([*lines, ""])


def make_split(work: Path) -> Path:
    """A synthetic release of the size of ml-32m, ingested and split."""
    release, ingest, split = work / "ml-32m", work / "ingest", work / "split"
    synth = [sys.executable, "-m", "tripletune.cli.main", "synth", "--size", "ml-32m", "--out", str(release)]
    subprocess.run(synth, check=True)
    ingest.mkdir()
    split.mkdir()
    ingest_release(release, ingest, IngestConfig())
    write_split(ingest / "ratings.parquet", split, SplitConfig(shards=64, unseen_share=0.01), SEED)
    return split


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def main(
    split: Annotated[str, typer.Option(help="Output of the split stage; empty: a synthetic ml-32m's.")] = "",
    steps: Annotated[int, typer.Option(help="Steps to run of each epoch; 0: all.")] = 0,
    only: Annotated[str, typer.Option(help="Some of the settings, by name, parted by ';'; empty: all.")] = "",
    scratch: Annotated[str, typer.Option(help="Folder for what is written and removed; empty: a temporary one.")] = "",
    child: Annotated[str, typer.Option(hidden=True, help="Settings in JSON, measured in this process.")] = "",
) -> None:
    """Measure, and write benchmarks/lightgcn_32m.md."""
    if child:
        print(json.dumps(measure(Path(split), json.loads(child), steps)))
        return
    with tempfile.TemporaryDirectory(dir=scratch or None) as work:
        folder, told = Path(split), "given by --split"
        if not split:
            folder, told = make_split(Path(work)), "`tripletune synth --size ml-32m`, `split.unseen_share` 0.01"
        told += "".join(f"; --{name} {value!r}" for name, value in (("steps", steps), ("only", only)) if value)
        results = {}
        for name in only.split(";") if only else SETTINGS:
            asked = ("--split", str(folder), "--steps", str(steps), "--child", json.dumps(SETTINGS[name]))
            done = subprocess.run([sys.executable, __file__, *asked], check=True, stdout=subprocess.PIPE, text=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
            Console(stderr=True).print(name, results[name])
    REPORT.write_text(report(results, told), encoding="utf-8")
    Console().print(REPORT.read_text(encoding="utf-8"), markup=False)


if __name__ == "__main__":
    app()
