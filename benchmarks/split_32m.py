"""Ingest and split of 32 million ratings against DuckDB, on the same file, alternately, in one run.

    python benchmarks/split_32m.py                    # writes a synthetic ml-32m release first (some minutes)
    python benchmarks/split_32m.py --release FOLDER   # or takes one

Both sides read ratings.csv with types, order each user's rows by time (ties by movie id, which both support), number
and label them, and write 64 zstd Parquet shards in that order. Every run is a process of its own; its wall time, CPU
time and peak memory are the kernel's. The rows both wrote must have one checksum. Results go to benchmarks/split.md.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import duckdb
import polars as pl
import psutil
import typer
from rich.console import Console

from tripletune.config import IngestConfig, SplitConfig
from tripletune.data.release.movielens import ingest_release
from tripletune.data.split.write import write_split

SHARDS = 64
SEED = 7
COMPARED = ("user_id", "movie_id", "rating", "timestamp", "position", "label")
REPORT = Path(__file__).with_name("split.md")
SYNTH = "python -m tripletune.cli.main synth --size ml-32m --out"

TYPED_READ = """
    SELECT userId AS user_id, movieId AS movie_id, rating, timestamp
    FROM read_csv('{release}/ratings.csv', header = true, delim = ',', columns = {{
        'userId': 'INTEGER', 'movieId': 'INTEGER', 'rating': 'FLOAT', 'timestamp': 'BIGINT'}}{options})
"""
LABELS = """
    WITH ordered AS (
        SELECT *, row_number() OVER viewer - 1 AS position,
            sum(CASE WHEN rating >= 4 THEN 1 ELSE 0 END) OVER viewer AS likes_so_far,
            sum(CASE WHEN rating >= 4 THEN 1 ELSE 0 END) OVER (PARTITION BY user_id) AS likes
        FROM ratings WINDOW viewer AS (PARTITION BY user_id ORDER BY timestamp, movie_id)
    )
    SELECT user_id, movie_id, rating, timestamp, position::INTEGER AS position,
        CASE WHEN rating < 4 THEN 'other' WHEN likes < 5 THEN 'graph'
             WHEN likes_so_far = likes THEN 'test' WHEN likes_so_far = likes - 1 THEN 'valid'
             WHEN likes - likes_so_far < 2 + least(likes - 5, 5) THEN 'target' ELSE 'graph' END AS label,
        hash(user_id) % 100 < 5 AS unseen, hash(user_id) % {shards} AS shard
    FROM ordered{order}
"""
VALIDATION = """
    CREATE TEMP TABLE movies AS SELECT movieId AS movie_id
        FROM read_csv('{release}/movies.csv', header = true, columns = {{
            'movieId': 'INTEGER', 'title': 'VARCHAR', 'genres': 'VARCHAR'}});
    CREATE TEMP TABLE raw AS SELECT * FROM ({read});
    CREATE TEMP TABLE ranked AS SELECT *,
        movie_id IN (SELECT movie_id FROM movies) AS known,
        rating BETWEEN 0.5 AND 5 AND timestamp BETWEEN 788918400 AND 4102444799 AND user_id >= 0 AS sound,
        row_number() OVER (PARTITION BY user_id, movie_id ORDER BY timestamp DESC, rating DESC) = 1 AS newest
    FROM raw;
    COPY (SELECT * FROM ranked WHERE NOT (known AND sound AND newest)) TO '{out}/rejects.parquet';
    COPY (SELECT line, column_name, csv_line, error_message FROM reject_errors) TO '{out}/unreadable.parquet';
    CREATE TEMP VIEW ratings AS
        SELECT user_id, movie_id, rating, timestamp FROM ranked WHERE known AND sound AND newest;
"""


def tripletune(release: Path, out: Path, tie_order: str = "movie_id") -> None:
    """Ingest, validation included, and split."""
    ingest = out / "ingest"
    ingest.mkdir()
    ingest_release(release, ingest, IngestConfig())
    settings = SplitConfig(shards=SHARDS, tie_order=tie_order)  # type: ignore[arg-type]
    write_split(ingest / "ratings.parquet", out, settings, SEED)


def tripletune_default(release: Path, out: Path) -> None:
    """As tripletune, with ties in the default order, by a seeded hash."""
    tripletune(release, out, tie_order="hash")


def duckdb_ordered(release: Path, out: Path) -> None:
    """Typed read, order, labels, shards; rows in order in each shard."""
    _duckdb(release, out, order="\n    ORDER BY shard, user_id, position", validate=False)


def duckdb_unordered(release: Path, out: Path) -> None:
    """The same, rows in a shard in any order."""
    _duckdb(release, out, order="", validate=False)


def duckdb_validating(release: Path, out: Path) -> None:
    """As duckdb_ordered, and every rule of ingest on the ratings, with the rejected rows kept separately."""
    _duckdb(release, out, order="\n    ORDER BY shard, user_id, position", validate=True)


def _duckdb(release: Path, out: Path, *, order: str, validate: bool) -> None:
    connection = duckdb.connect(config={"threads": os.cpu_count(), "temp_directory": str(out / "spill")})
    if validate:
        read = TYPED_READ.format(release=release, options=", store_rejects = true")
        connection.execute(VALIDATION.format(release=release, read=read, out=out))
    else:
        connection.execute(f"CREATE TEMP VIEW ratings AS {TYPED_READ.format(release=release, options='')}")
    labelled = LABELS.format(shards=SHARDS, order=order)
    connection.execute(f"COPY ({labelled}) TO '{out}/shards' (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (shard))")


SIDES = {
    side.__name__: side
    for side in (tripletune, tripletune_default, duckdb_ordered, duckdb_unordered, duckdb_validating)
}


@dataclass(frozen=True)
class Run:
    """Resources of one process, and a checksum of the rows it wrote."""

    side: str
    rows: int
    seconds: float
    cpu_seconds: float
    peak_gib: float
    checksum: str


def measure(side: str, release: Path, scratch: Path) -> Run:
    """Run one side in a fresh process."""
    out = scratch / side
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    started = time.monotonic()
    asked = ("--only", side, "--release", str(release), "--scratch", str(out))
    child = subprocess.Popen([sys.executable, __file__, *asked])
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{side} failed with exit code {child.returncode}")
    rows, checksum = verify(out)
    run = Run(side, rows, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, checksum)
    shutil.rmtree(out)
    Console(stderr=True).print(f"{side:20} {rows:>11,} rows  {seconds:6.1f} s  {run.peak_gib:.2f} GiB  {checksum}")
    return run


def verify(out: Path) -> tuple[int, str]:
    """Rows in the shards, and an order-independent checksum of them; every user must be in exactly one shard."""
    files = sorted(path for path in out.rglob("*.parquet") if "shard=" in str(path))
    folders = sorted({path.parent for path in files})
    if len(folders) != SHARDS:
        raise SystemExit(f"{out} has {len(folders)} shards, not {SHARDS}")
    rows = total = viewers = 0
    everyone: set[int] = set()
    for folder in folders:
        shard = pl.concat(pl.read_parquet(path, hive_partitioning=False) for path in folder.glob("*.parquet"))
        same = shard.select(pl.col(COMPARED[:-1]), pl.col("label").cast(pl.String))
        total = (total + _sum_of_hashes(same)) % 2**64
        users = shard["user_id"].unique()
        viewers += users.len()
        everyone.update(users)
        rows += shard.height
    if viewers != len(everyone):
        raise SystemExit(f"{out}: a user is in more than one shard")
    return rows, f"{total:016x}"


def _sum_of_hashes(rows: pl.DataFrame) -> int:
    # halves, because polars' own sum stops at 64 bits
    hashes = rows.hash_rows(seed=1)
    return (int((hashes // 2**32).sum()) << 32) + int((hashes % 2**32).sum())


def first_rows(release: Path, wanted: int, folder: Path) -> Path:
    """A release with the first ratings of another one, cut between two users."""
    folder.mkdir(parents=True)
    users = pl.scan_csv(release / "ratings.csv").select("userId").head(wanted + 1).collect()["userId"]
    end = wanted if users[wanted] != users[wanted - 1] else int((users == users[wanted]).arg_max() or 0)
    with (release / "ratings.csv").open("rb") as source, (folder / "ratings.csv").open("wb") as target:
        for _, line in zip(range(end + 1), source, strict=False):
            target.write(line)
    shutil.copy(release / "movies.csv", folder)
    return folder


def report(runs: list[Run], growth: list[Run], release: str, repeats: int) -> str:
    """The tables, in Markdown."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("polars", "pyarrow", "numpy", "duckdb"))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    lines = [
        "# Ingest and split of 32 million ratings",
        "",
        "What it compares and how: the head of `split_32m.py`. `tripletune` does more than the first two DuckDB rows:",
        "it checks every rule, keeps refused rows with file and line, reads movies, tags and links, and writes the",
        "whole of it as typed Parquet before it splits.",
        "",
        f"{machine}; Python {platform.python_version()}, {libraries}",
        f"`python benchmarks/split_32m.py`; release: {release}; {repeats} alternating rounds, the best of each",
        "",
        "| | rows | wall s | all rounds | CPU s | peak GiB | checksum of the rows |",
        "|---|--:|--:|---|--:|--:|---|",
    ]
    for side in dict.fromkeys(run.side for run in runs):
        mine = [run for run in runs if run.side == side]
        best = min(mine, key=lambda run: run.seconds)
        every = ", ".join(f"{run.seconds:.1f}" for run in mine)
        lines.append(
            f"| {side.replace('_', ', ')} | {best.rows:,} | {best.seconds:.1f} | {every} | {best.cpu_seconds:.1f} "
            f"| {max(run.peak_gib for run in mine):.2f} | {best.checksum} |"
        )
    lines += ["", "Growth, one round each:", "", "| | rows | wall s | peak GiB |", "|---|--:|--:|--:|"]
    lines += [f"| {r.side.replace('_', ', ')} | {r.rows:,} | {r.seconds:.1f} | {r.peak_gib:.2f} |" for r in growth]
    return "\n".join([*lines, ""])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def compare(
    release: Annotated[str, typer.Option(help="Folder with ratings.csv and movies.csv; empty: synthetic.")] = "",
    repeats: Annotated[int, typer.Option(help="Alternating rounds.")] = 3,
    scratch: Annotated[str, typer.Option(help="Folder for what is written and removed; empty: a temporary one.")] = "",
    only: Annotated[str, typer.Option(hidden=True, help="One side, in this process.")] = "",
) -> None:
    """Measure, check that the rows agree, and write benchmarks/split.md."""
    if only:
        SIDES[only](Path(release), Path(scratch))
        return
    with tempfile.TemporaryDirectory(dir=scratch or None) as work:
        whole, told = Path(release), "given by --release"
        if not release:
            whole, told = Path(work) / "ml-32m", "`tripletune synth --size ml-32m`"
            subprocess.run([*SYNTH.replace("python", sys.executable).split(), str(whole)], check=True)
        runs, growth = [], []
        for number in range(repeats):
            for side in SIDES:
                if side != "duckdb_validating" or number == 0:
                    runs.append(measure(side, whole, Path(work)))
        if len({run.checksum for run in runs if run.side != "tripletune_default"}) != 1:
            raise SystemExit("the sides wrote different rows")
        for wanted in (8_000_000, 16_000_000, 0):
            part = first_rows(whole, wanted, Path(work) / f"first-{wanted}") if wanted else whole
            growth += [measure(side, part, Path(work)) for side in ("tripletune_default", "duckdb_ordered")]
        REPORT.write_text(report(runs, sorted(growth, key=lambda run: run.side), told, repeats), encoding="utf-8")
        Console().print(REPORT.read_text(encoding="utf-8"), markup=False)


if __name__ == "__main__":
    app()
