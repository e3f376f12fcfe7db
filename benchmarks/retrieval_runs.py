"""Shared code of the two retrieval benchmarks: run either side once, score its lists, write the table.

Each side's outputs are kept in the work folder and reused, so that a table can be rebuilt without training.
"""

# Shape letters in this file: U users, K places of a list
from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import psutil
from recbole_export import Asked
from rich.console import Console

from tripletune.evaluate.metrics import score_lists
from tripletune.evaluate.significance import Interval, mean_interval

Ints = npt.NDArray[np.int64]
RECBOLE_SIDE = Path(__file__).with_name("recbole_side.py")
RECTOOLS_SIDE = Path(__file__).with_name("rectools_side.py")
LENGTH = 20
"""Films of a list."""
CUTOFFS = (5, 10)
METRICS = ("hr_at_5", "hr_at_10", "ndcg_at_5", "ndcg_at_10")
RESAMPLES, CONFIDENCE = 2000, 0.95
console = Console(stderr=True)


def run_stages(stages: tuple[str, ...], preset: Path, release: Path, artifacts: Path, imdb: str = "") -> Path:
    """Run (or find) stages by the command line, as a user would; the folder of the last one."""
    folder = ""
    for stage in stages:
        asked = [stage, "--config", str(preset), "--movielens", str(release), "--artifacts", str(artifacts)]
        imdb_too = ["--imdb", imdb] if imdb else []
        done = subprocess.run(
            [sys.executable, "-m", "tripletune.cli.main", *asked, *imdb_too],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        folder = done.stdout.strip().splitlines()[-1]
        console.print(f"{stage}: {folder}", markup=False, highlight=False)
    return Path(folder)


@dataclass(frozen=True, slots=True)
class Trained:
    """One training run of either side, as its folder holds it."""

    folder: Path

    def curve(self) -> pl.DataFrame:
        """A row per evaluation: ``epoch`` or ``step``, ``train_seconds``, ``train_cpu_seconds``, valid ndcg_at_10."""
        return pl.read_ndjson(self.folder / "curve.jsonl")

    def best(self) -> dict[str, Any]:
        """The row of the curve with the best valid ndcg_at_10, the earliest of equals."""
        curve = self.curve()
        return curve.row(int(curve["valid_ndcg_at_10"].arg_max() or 0), named=True)

    def first_at(self, ndcg: float) -> dict[str, Any] | None:
        """The first row of the curve that is no worse than ``ndcg``; None where there is none."""
        reached = self.curve().filter(pl.col("valid_ndcg_at_10") >= ndcg)
        return reached.row(0, named=True) if len(reached) else None

    def lists(self, name: str = "top_test") -> Ints:
        """Film ids (U, K), -1 at the end of short rows."""
        lists_UK: Ints = np.load(self.folder / f"{name}.npy")
        return lists_UK

    def done(self) -> dict[str, Any]:
        """The arguments, why the training ended, and the versions."""
        return dict(json.loads((self.folder / "done.json").read_text(encoding="utf-8")))


def point_name(model: str, settings: dict[str, Any]) -> str:
    """A folder's name for a model at one point of its grid."""
    return "-".join([model, *(str(value) for value in settings.values())])


def run_side(
    python: Path,
    side: Path,
    job: Path,
    out: Path,
    model: str,
    settings: dict[str, Any],
    cap_minutes: float,
    seed: int,
) -> Trained:
    """Train another library's model in its own environment, unless ``out`` holds a run (a cut one counts as well).

    Args:
        python: of that environment.
        side: the script that it runs, ``RECBOLE_SIDE`` or ``RECTOOLS_SIDE``.
        job: what ``recbole_export.py`` wrote.
        out: of the run.
        model, settings, cap_minutes, seed: arguments of the script.
    """
    if not (out / "top_test.npy").exists():
        out.mkdir(parents=True, exist_ok=True)
        # a relative path would be looked for in `out`
        python = Path(shutil.which(python) or python).absolute()
        console.print(f"{out.name}: {model} {json.dumps(settings)}", markup=False, highlight=False)
        told = ["--model", model, "--settings", json.dumps(settings), "--seed", str(seed)]
        told += ["--cap-seconds", str(60 * cap_minutes)]
        with (out / "run.log").open("w", encoding="utf-8") as log:
            # RecBole writes its own logs into the working directory
            subprocess.run(
                [python, side, job.resolve(), out.resolve(), *told], check=True, cwd=out, stdout=log, stderr=log
            )
    return Trained(out)


def score(lists_UK: Ints, asked: Asked) -> pl.DataFrame:
    """Metrics of each user, in the order of ``asked.users``."""
    if len(lists_UK) != len(asked.users):
        raise SystemExit(
            f"{len(lists_UK)} lists for {len(asked.users)} viewers: remove the stale run from the work folder"
        )
    lists = pl.Series(lists_UK).arr.to_list().list.eval(pl.element().filter(pl.element() >= 0))
    return score_lists(lists, asked.answers["movie_id"], CUTOFFS).select(METRICS)


def mean(scores: pl.DataFrame, metric: str) -> float:
    """Over all users."""
    return float(scores[metric].to_numpy().mean())


def difference(first: pl.DataFrame, second: pl.DataFrame, metric: str, seed: int) -> Interval:
    """First minus second over the same users."""
    gain_U = first[metric].to_numpy() - second[metric].to_numpy()
    return mean_interval(gain_U, confidence=CONFIDENCE, resamples=RESAMPLES, seed=seed)


def told(interval: Interval) -> str:
    """``+.0123 [+.0010, +.0240]``."""
    low, high = interval.low or 0.0, interval.high or 0.0
    return f"{interval.value:+.4f} [{low:+.4f}, {high:+.4f}]"


def metric_table(rows: dict[str, pl.DataFrame]) -> list[str]:
    """Lines of a Markdown table: a row per name, a column per metric."""
    lines = ["| | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for name, scores in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{mean(scores, metric):.4f}" for metric in METRICS) + " |")
    return lines


def machine() -> str:
    """Processor, memory and the versions on our side, in one line."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "dgl", "numpy", "polars", "scipy"))
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    return f"{platform.machine()}, {os.cpu_count()} cores, {memory}; Python {platform.python_version()}, {libraries}"
