"""Credits of 87,585 films out of dumps in IMDb's layout with 20 million principals, and the graph made of them.

    python benchmarks/knowledge_20m.py compare                  # makes a synthetic ml-32m release with its dumps first
    python benchmarks/knowledge_20m.py compare --data FOLDER    # keeps it there, and takes it from there the next time

Every run is a process of its own; its wall time, CPU time and peak memory are the kernel's. ``title.principals`` is
also read alone, and compared with polars' CSV reader with the same filter, which does not detect malformed lines; both
must find the same rows. To measure the growth, the file is then repeated four times, which is near the size of the
real one (90 million rows). Results go to benchmarks/knowledge.md.
"""

from __future__ import annotations

import json
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
from typing import Annotated, Any

import polars as pl
import psutil
import typer
from rich.console import Console

from tripletune.config import IngestConfig, KnowledgeConfig
from tripletune.data.release.movielens import ingest_release
from tripletune.knowledge.build import write_knowledge
from tripletune.knowledge.imdb import read_credits
from tripletune.knowledge.imdb_dumps import read_dump
from tripletune.schemas.ingest import LINKS

COLUMNS = ("tconst", "ordering", "nconst", "category")
COPIES = 4
REPORT = Path(__file__).with_name("knowledge.md")
SYNTH = "-m tripletune.cli.main synth --size ml-32m --out"


def credits(ingest: Path, imdb: Path, out: Path) -> dict[str, Any]:
    """All four dumps: read_credits."""
    links, movies = (pl.scan_parquet(ingest / f"{table}.parquet") for table in ("links", "movies"))
    found, facts = read_credits(imdb, links, KnowledgeConfig(), movies)
    found.write_parquet(out / "credits.parquet")
    return {"rows": found.height, **facts}


def graph(ingest: Path, imdb: Path, out: Path) -> dict[str, Any]:
    """The whole stage: credits, then the graph with tags of 2 million and coverage weighted by 32 million ratings."""
    credits(ingest, imdb, out)
    found = pl.read_parquet(out / "credits.parquet")
    tables = (ingest / f"{table}.parquet" for table in ("movies", "tags", "ratings"))
    facts = write_knowledge(*tables, found, [], out, KnowledgeConfig())
    return {"rows": facts["triples"], **facts}


def principals(ingest: Path, imdb: Path, out: Path) -> dict[str, Any]:
    """title.principals alone, as read_credits reads it; malformed lines are counted."""
    dump = read_dump(imdb, "title.principals", COLUMNS, _films(ingest))
    return _counted(dump.rows)


def scan_csv(ingest: Path, imdb: Path, out: Path) -> dict[str, Any]:
    """title.principals by polars' scan_csv, filter and collect; malformed lines go unnoticed."""
    return _counted(_scan(ingest, imdb).collect())


def scan_csv_streaming(ingest: Path, imdb: Path, out: Path) -> dict[str, Any]:
    """The same by the streaming engine."""
    return _counted(_scan(ingest, imdb).collect(engine="streaming"))


def _scan(ingest: Path, imdb: Path) -> pl.LazyFrame:
    path = imdb / "title.principals.tsv.gz"
    scan = pl.scan_csv(path, separator="\t", quote_char=None, infer_schema=False, null_values="\\N")
    return scan.select(COLUMNS).filter(pl.col("tconst").is_in(_films(ingest).implode()))


def _films(ingest: Path) -> pl.Series:
    return pl.read_parquet(ingest / "links.parquet", schema=LINKS)["imdb_id"].drop_nulls().unique()


def _counted(rows: pl.DataFrame) -> dict[str, Any]:
    return {"rows": rows.height, "checksum": int(rows.hash_rows(seed=1).sum())}


SIDES = {side.__name__: side for side in (credits, graph, principals, scan_csv, scan_csv_streaming)}


@dataclass(frozen=True)
class Run:
    """Resources and results of one process; ``load``: mean number of busy processes in the minute before."""

    side: str
    copies: int
    seconds: float
    cpu_seconds: float
    peak_gib: float
    load: float
    facts: dict[str, Any]


def measure(side: str, ingest: Path, imdb: Path, scratch: Path, copies: int) -> Run:
    """Run one side in a fresh process."""
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    load = os.getloadavg()[0]
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, __file__, "one", side, str(ingest), str(imdb), str(out)])
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{side} failed with exit code {child.returncode}")
    facts = json.loads((out / "facts.json").read_text())
    cpu_seconds = usage.ru_utime + usage.ru_stime
    run = Run(side, copies, seconds, cpu_seconds, usage.ru_maxrss / 2**20, load, facts)
    Console(stderr=True).print(f"{side:20} x{copies}  {seconds:6.1f} s  {run.peak_gib:.2f} GiB  load before {load:.1f}")
    return run


def repeated(imdb: Path, folder: Path) -> Path:
    """The same dumps with title.principals several times over."""
    folder.mkdir()
    for path in imdb.glob("*.tsv.gz"):
        with (folder / path.name).open("wb") as file:
            for _ in range(COPIES if path.name.startswith("title.principals") else 1):
                file.write(path.read_bytes())
    return folder


def report(runs: list[Run], dumps: dict[str, int], repeats: int) -> str:
    """The tables, in Markdown."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("polars", "numpy"))
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}"
    credit_facts = next(run.facts for run in runs if run.side == "credits")
    graph_facts = next(run.facts for run in runs if run.side == "graph")
    lines = [
        "# The knowledge graph at full size",
        "",
        "What is measured and how: the head of `knowledge_20m.py`. Start of Python and imports are included.",
        "",
        f"{machine}, {libraries}",
        f"`python benchmarks/knowledge_20m.py compare`; best of {repeats} alternating rounds (one of the larger file).",
        "Load: running processes, mean over the minute before; earlier runs of this script are among them.",
        "",
        "Rows of the dumps: " + ", ".join(f"{name} {rows:,}" for name, rows in dumps.items()),
        "",
        "| | principals | wall s | all rounds | CPU s | peak GiB | load before | rows found |",
        "|---|--:|--:|---|--:|--:|---|--:|",
    ]
    for side, copies in dict.fromkeys((run.side, run.copies) for run in runs):
        mine = [run for run in runs if (run.side, run.copies) == (side, copies)]
        best = min(mine, key=lambda run: run.seconds)
        every = ", ".join(f"{run.seconds:.1f}" for run in mine)
        loads = ", ".join(f"{run.load:.1f}" for run in mine)
        peak = max(run.peak_gib for run in mine)
        lines.append(
            f"| {side} | {dumps['title.principals'] * copies:,} | {best.seconds:.1f} | {every} "
            f"| {best.cpu_seconds:.1f} | {peak:.2f} | {loads} | {best.facts['rows']:,} |"
        )
    lines += ["", *(f"- `{name}`: {(side.__doc__ or '').strip()}" for name, side in SIDES.items())]
    lines += [
        "",
        "Counts of `credits`:",
        "",
        *_told(credit_facts),
        "",
        "Counts of `graph`:",
        "",
        *_told(graph_facts),
        "",
    ]
    return "\n".join(lines)


def _told(facts: dict[str, Any]) -> list[str]:
    rounded = json.loads(json.dumps(facts), parse_float=lambda text: round(float(text), 3))
    return [f"- `{key}`: {json.dumps(value).replace(chr(34), '')}" for key, value in rounded.items()]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def compare(
    data: Annotated[str, typer.Option(help="Where the release is, or is made and kept; empty: a temporary one.")] = "",
    repeats: Annotated[int, typer.Option(help="Alternating rounds.")] = 3,
) -> None:
    """Measure, check that the readers agree, and write benchmarks/knowledge.md."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        release = Path(data) if data else work / "release"
        if not (release / "imdb").is_dir():
            subprocess.run([sys.executable, *SYNTH.split(), str(release)], check=True)
        ingest = work / "ingest"
        ingest.mkdir()
        # in a process of its own: a child's peak is never below the memory its parent had at the start
        subprocess.run([sys.executable, __file__, "prepare", str(release), str(ingest)], check=True)
        imdb = release / "imdb"
        rows = {path.name.removesuffix(".tsv.gz"): _num_rows(path) for path in sorted(imdb.glob("*.tsv.gz"))}
        runs = [measure(side, ingest, imdb, work, 1) for _ in range(repeats) for side in SIDES]
        more = repeated(imdb, work / "repeated")
        runs += [measure(side, ingest, more, work, COPIES) for side in SIDES if side != "graph"]
        for copies in (1, COPIES):
            if len({run.facts["checksum"] for run in runs if run.copies == copies and "checksum" in run.facts}) != 1:
                raise SystemExit("the readers found different rows")
        if len({run.facts["rows"] for run in runs if run.side == "credits"}) != 1:
            raise SystemExit("repeated rows changed the credits")
        REPORT.write_text(report(runs, rows, repeats), encoding="utf-8")
        Console().print(REPORT.read_text(encoding="utf-8"), markup=False)


def _num_rows(path: Path) -> int:
    lines: int = pl.scan_lines(path).select(pl.len()).collect(engine="streaming").item()
    return lines - 1


@app.command(hidden=True)
def prepare(release: Path, out: Path) -> None:
    """Ingest, which is not measured here."""
    ingest_release(release, out, IngestConfig())


@app.command(hidden=True)
def one(side: str, ingest: Path, imdb: Path, out: Path) -> None:
    """One side, in this process."""
    (out / "facts.json").write_text(json.dumps(SIDES[side](ingest, imdb, out)))


if __name__ == "__main__":
    app()
