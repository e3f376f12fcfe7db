"""Benchmark of examples for every user at MovieLens 32M's size: from specialists to finished shards, by step.

    python benchmarks/generate_200k.py                 # makes a synthetic ml-32m release first (some minutes)
    python benchmarks/generate_200k.py --work FOLDER   # keeps what it makes there, and finds it again

One ``test`` example for each user who has a test like, with both hints and exact token counts (a byte-level BPE of up
to 128,000 entries, trained here on titles and names: Llama's own is gated). The specialists are made up, see
``generate_world.py``: the measured costs do not depend on what they learned. Growth: the same catalogue, and a half, a
quarter and an eighth of the users, among whom similar ones are searched too: exactly up to
``retrieve.similar_exact_users``, by clusters above. Retrieval, shards and audit each run in a
process of their own, with two threads; wall, CPU and peak memory are the kernel's. At last some
thousand of the examples are rendered once more, by ``prompts.render`` and row by row (``generate_rowwise.py``), and
the texts compared. Results go to benchmarks/generate_200k.md.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import psutil
import typer
from generate_meter import Steps
from generate_rowwise import render_by_row
from generate_world import make_specialists
from rich.console import Console

from tripletune.audit.audit import audit_work_folder
from tripletune.audit.leaks import refuse_leaks
from tripletune.config import RunConfig
from tripletune.data.release.movielens import ingest_release
from tripletune.data.split.write import write_split
from tripletune.finetune.tiny import train_tokenizer
from tripletune.knowledge.build import write_knowledge
from tripletune.knowledge.imdb import read_credits
from tripletune.models.ease import serve as ease
from tripletune.models.sequence import serve as sequence
from tripletune.prompts import engine, render
from tripletune.prompts.shards import generate_shards
from tripletune.retrieve import buckets as buckets_of
from tripletune.retrieve import candidates, first_stage, retriever, similar
from tripletune.threads import map_in_threads

CONFIG = RunConfig.model_validate(
    {
        "dataset": "benchmark",
        "seed": 7,
        "split": {"shards": 64},
        "retrieve": {"purposes": ["test"], "fusion": "fixed"},
        "sequence": {"content": []},
    }
)
"""The default lists, SLIST and the sequence model, with equal weights: made-up models have nothing to teach."""
SIZES = (8, 16, 32, 64)
"""Buckets of the split: an eighth of the users, ..., all."""
VOCABULARY = 128_000
SAMPLE = 3000
"""Examples rendered row by row."""
PARTS = ("retrieve", "shards", "audit")
REPORT = Path(__file__).with_name("generate_200k.md")
console = Console(stderr=True)


def prepare(work: Path, release: str) -> None:
    """Everything that the measured parts read, unless it is there already."""
    _once(work / "ingest", lambda out: ingest_release(_release(work, release), out, CONFIG.ingest))
    ratings = work / "ingest" / "ratings.parquet"
    _once(work / "split", lambda out: write_split(ratings, out, CONFIG.split, CONFIG.seed))
    _once(work / "knowledge", lambda out: _knowledge(work, _release(work, release), out))
    _once(work / "specialists", lambda out: make_specialists(work / "split", work / "knowledge", out, CONFIG))
    _once(work / "tokenizer", lambda out: _tokenizer(work, out))
    for buckets in SIZES:
        _once(work / f"first-{buckets}", lambda out, buckets=buckets: _first(work, buckets, out))


def _once(folder: Path, make: Callable[[Path], Any]) -> None:
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        console.print(f"making {folder.name}")
        make(part)
        part.rename(folder)


def _release(work: Path, release: str) -> Path:
    if release:
        return Path(release)
    synth = [sys.executable, "-m", "tripletune.cli.main", "synth", "--size", "ml-32m", "--out"]
    _once(work / "release", lambda out: subprocess.run([*synth, str(out / "ml-32m")], check=True))
    return work / "release" / "ml-32m"


def _knowledge(work: Path, release: Path, out: Path) -> None:
    ingest, settings = work / "ingest", CONFIG.knowledge
    links, movies = (pl.scan_parquet(ingest / f"{table}.parquet") for table in ("links", "movies"))
    imdb = release / "imdb"
    credits, _ = read_credits(imdb if imdb.is_dir() else None, links, settings, movies)
    tables = (ingest / f"{table}.parquet" for table in ("movies", "tags", "ratings"))
    write_knowledge(*tables, credits, [], out, settings, None)


def _tokenizer(work: Path, out: Path) -> None:
    titles = pl.read_parquet(work / "ingest" / "movies.parquet")["title"]
    names = pl.read_parquet(work / "knowledge" / "entities.parquet")["name"].drop_nulls()
    template = engine.load_template(CONFIG.prompt.template)
    train_tokenizer(iter([*titles, *names, template.system, template.user]), VOCABULARY).save_pretrained(str(out))


def _first(work: Path, buckets: int, out: Path) -> None:
    """The first buckets of the split, and LightGCN with the rows of their users alone."""
    chosen = sorted((work / "split").glob("shard=*"))[:buckets]
    for path in chosen:
        _link(path / "part.parquet", out / "split" / path.name / "part.parquet")
    for path in (work / "specialists" / "lightgcn").iterdir():
        _link(path, out / "lightgcn" / path.name)
    if len(chosen) == len(list((work / "split").glob("shard=*"))):
        return
    files = [path / "part.parquet" for path in chosen]
    users = pl.scan_parquet(files, hive_partitioning=False).select(pl.col("user_id").unique())
    rows = out / "lightgcn" / "trained_on.parquet"
    mine = pl.scan_parquet(rows).join(users, on="user_id", how="semi", maintain_order="left").collect()
    rows.unlink()
    mine.write_parquet(rows)


def _link(target: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target.resolve())


def run_part(part: str, work: Path, buckets: int) -> dict[str, Any]:
    """Run one part in this process; returns its measurements."""
    first, steps = work / f"first-{buckets}", Steps()
    out = first / part
    if part != "audit":
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
    if part == "retrieve":
        _watch_retrieval(steps)
        facts = candidates.retrieve_all(
            first / "split",
            work / "knowledge",
            {"lightgcn": first / "lightgcn"}
            | {name: work / "specialists" / name for name in ("rgat", "sequence", "slist", "ease")},
            out,
            CONFIG.retrieve,
            num_liked_triples=CONFIG.prompt.triples_for_liked,
            seed=CONFIG.seed,
        )
    elif part == "shards":
        _watch_shards(steps)
        facts = generate_shards(
            work / "ingest",
            first / "split",
            first / "retrieve",
            out,
            CONFIG.prompt,
            CONFIG.retrieve,
            dislike=CONFIG.split.dislike,
            specialists={"lightgcn": "made up", "rgat": "made up"},
            seed=CONFIG.seed,
            tokenizer=(str(work / "tokenizer"), ""),
            map_jobs=lambda write, jobs: map_in_threads(write, jobs, most=2) and None,
        )
    else:
        audit = audit_work_folder(
            first / "shards",
            first / "split",
            first / "retrieve",
            {"lightgcn": first / "lightgcn"},
            earlier=None,
        )
        refuse_leaks(audit.leaks)
        facts = {}
    return {"steps": steps.seconds, "facts": facts}


def _watch_retrieval(steps: Steps) -> None:
    for name in ("find_questions", "find_history", "find_seen", "find_answers", "digest_users"):
        steps.watch(buckets_of, name, "rows, histories, masks")
    steps.watch(candidates, "find_seen_in_training", "rows, histories, masks")
    for name in ("_count", "write_table"):
        steps.watch(buckets_of, name, "counting, writing")
    steps.watch(buckets_of, "find_profiles", "preference profiles")
    stage = retriever.Retriever
    steps.watch(stage, "retrieve_and_rank", "joins between the steps")
    steps.watch(stage, "_rank", "evaluation lists of 10,000 viewers")
    steps.watch(stage, "_choose", "hint 2: triples")
    steps.watch(similar.Neighbours, "nearest", "hint 1: nearest viewers")
    steps.watch(similar.Neighbours, "films", "hint 1: their films")
    steps.watch(ease.EaseFit, "top", "SLIST and EASE lists")
    steps.watch(sequence.SequenceFit, "users", "sequence model's users")
    steps.watch(sequence.SequenceFit, "top", "sequence model's lists")
    steps.watch(first_stage, "fuse", "fusion")
    original = stage.load
    stage.load = classmethod(  # type: ignore[method-assign, assignment]
        lambda cls, *args, **kwargs: steps.timed(original, "loading")(*args, **kwargs)
    )


def _watch_shards(steps: Steps) -> None:
    steps.watch(engine, "draw_lines", "rendering")
    steps.watch(engine, "join_prompts", "rendering")
    steps.watch(engine.TokenCounter, "count", "token counts")
    steps.watch(engine.TokenCounter, "check", "token counts")


def render_both_ways(work: Path, buckets: int) -> dict[str, Any]:
    """Seconds for the same examples by ``prompts.render`` and row by row, on one thread; the texts must be equal."""
    seen: list[tuple[Any, ...]] = []
    original = engine.draw_lines
    engine.draw_lines = lambda *args: seen.append(args) or original(*args)  # type: ignore[func-returns-value]
    first = work / f"first-{buckets}"
    shutil.rmtree(first / "again", ignore_errors=True)
    (first / "again").mkdir()
    run_part("shards", work, buckets)
    engine.draw_lines = original
    examples, template, form, titles = seen[0]
    examples = examples.head(SAMPLE)
    start = time.process_time()
    ours = render.join_prompts(examples, render.draw_lines(examples, template, form, titles), template, titles)
    ours_seconds = time.process_time() - start
    columns = [*template.slots, "completion"]
    by_row = examples.select(columns).to_pandas()
    relations = render.words_of_relations(
        examples["triples"].explode().struct.field("relation").unique(), form, template.wording
    )
    movies = titles.to_pandas().set_index("movie_id")
    start = time.process_time()
    theirs = render_by_row(by_row, movies, relations.to_pandas().set_index("relation"), template)
    seconds = time.process_time() - start
    texts = zip(ours["prompt"].to_list(), ours["completion"].to_list(), strict=True)
    if [(prompt[1]["content"], answer[0]["content"]) for prompt, answer in texts] != theirs:
        raise SystemExit("the row-by-row generator wrote other prompts")
    return {"examples": len(theirs), "ours": ours_seconds, "by_row": seconds}


@dataclass(frozen=True, slots=True)
class Run:
    """One part, as the kernel measured it."""

    buckets: int
    part: str
    seconds: float
    cpu_seconds: float
    peak_gib: float
    told: dict[str, Any]


def measure(part: str, work: Path, buckets: int) -> Run:
    """Run a part in a fresh process."""
    asked = ["--work", str(work), "--part", part, "--buckets", str(buckets)]
    started = time.monotonic()
    child = subprocess.Popen([sys.executable, __file__, *asked])
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{part} failed with exit code {child.returncode}")
    told = json.loads((work / f"{part}-{buckets}.json").read_text(encoding="utf-8"))
    run = Run(buckets, part, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20, told)
    console.print(f"{buckets:3} {part:9} {seconds:7.1f} s  {run.cpu_seconds:7.1f} CPU s  {run.peak_gib:.2f} GiB")
    return run


def report(runs: list[Run], both: dict[str, Any], load: float, release: str) -> str:
    """The tables, in Markdown."""
    libraries = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "polars", "numpy", "scipy", "tokenizers")
    )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB"
    sizes = sorted({run.buckets for run in runs})
    viewers = {run.buckets: run.told["facts"]["examples"]["test"] for run in runs if run.part == "shards"}
    rate, by_row = (both["examples"] / both[side] for side in ("ours", "by_row"))
    lines = [
        "# Examples for every viewer of MovieLens 32M's size",
        "",
        "What is measured and how: the head of `generate_200k.py`.",
        "",
        f"{machine}; Python {platform.python_version()}, {libraries}; load before the run {load:.1f} (above 1, wall",
        "seconds are those of a shared machine: read the CPU seconds)",
        f"`python benchmarks/generate_200k.py`; release: {release}",
        "",
        "| examples | "
        + " | ".join(f"{part}: wall s | CPU s | peak GiB" for part in PARTS)
        + " | all: wall s | CPU s |",
        "|--:|" + "--:|" * (3 * len(PARTS) + 2),
    ]
    for buckets in sizes:
        mine = {run.part: run for run in runs if run.buckets == buckets}
        cells = [
            f"{mine[part].seconds:.0f} | {mine[part].cpu_seconds:.0f} | {mine[part].peak_gib:.2f}" for part in PARTS
        ]
        total = [sum(getattr(run, name) for run in mine.values()) for name in ("seconds", "cpu_seconds")]
        lines.append(f"| {viewers[buckets]:,} | " + " | ".join(cells) + f" | {total[0]:.0f} | {total[1]:.0f} |")
    lines += [
        "",
        "CPU seconds of each step in the threads that do it (what polars does in its own is in the sums above):",
        "",
    ]
    lines += ["| | " + " | ".join(f"{viewers[buckets]:,}" for buckets in sizes) + " |", "|---|" + "--:|" * len(sizes)]
    by_step = {(run.buckets, step): seconds for run in runs for step, seconds in run.told["steps"].items()}
    for step in dict.fromkeys(step for _, step in by_step):
        lines.append(f"| {step} | " + " | ".join(f"{by_step[buckets, step]:.1f}" for buckets in sizes) + " |")
    facts = next(run.told["facts"] for run in runs if run.part == "shards" and run.buckets == sizes[-1])
    lines += [
        "",
        f"Mean {facts['mean_tokens']} tokens, longest {facts['longest_tokens']}.",
        "",
        f"Rendering alone, {both['examples']:,} examples, one thread: {rate:,.0f} examples per CPU second; row by row",
        f"{by_row:,.0f}; {rate / by_row:.0f} times the rate, with the same text.",
        "",
    ]
    return "\n".join(lines)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def benchmark(
    work: Annotated[str, typer.Option(help="Folder for what is made, and found again; empty: a temporary one.")] = "",
    release: Annotated[str, typer.Option(help="A MovieLens release of any size; empty: synthetic ml-32m.")] = "",
    sizes: Annotated[str, typer.Option(help="Buckets of 64 that are taken, with commas.")] = "8,16,32,64",
    part: Annotated[str, typer.Option(hidden=True, help="One part, in this process.")] = "",
    buckets: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Measure, and write benchmarks/generate_200k.md."""
    if part:
        told = render_both_ways(Path(work), buckets) if part == "rendering" else run_part(part, Path(work), buckets)
        told["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (Path(work) / f"{part}-{buckets}.json").write_text(json.dumps(told), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder, load = Path(work or scratch), os.getloadavg()[0]
        prepare(folder, release)
        chosen = [int(size) for size in sizes.split(",")]
        runs = [measure(one, folder, size) for size in chosen for one in PARTS]
        both = measure("rendering", folder, chosen[0]).told
        told = "given by --release" if release else "`tripletune synth --size ml-32m`"
        REPORT.write_text(report(runs, both, load, told), encoding="utf-8")
        Console().print(REPORT.read_text(encoding="utf-8"), markup=False)


if __name__ == "__main__":
    app()
