"""Benchmark of the finetune stage's tokenising: made-up examples of about 1,000 tokens, by 1, 2 and 4 processes.

    python benchmarks/tokenize_200k.py                          # 200,000 examples
    python benchmarks/tokenize_200k.py --examples 5000 --objective listwise

The examples lie in 64 files with row groups of ``prompts.shards.ROW_GROUP``, as the generate stage writes them; the
tokenizer is a byte-level BPE of up to 32,000 entries, trained here on their titles and words. For each number of
processes ``write_token_files`` runs in a process of its own: wall seconds with the start of its processes, peak memory
with that of its processes (pages that they share are counted in each), bytes on disk, and a hash of all files, which
must be the same. Results go to benchmarks/tokenize_200k.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import psutil
import typer
from rich.console import Console

from tripletune.config import FinetuneConfig
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.tiny import train_tokenizer
from tripletune.finetune.token_files import TRAIN, read_token_files, token_lengths, write_token_files
from tripletune.prompts.shards import ROW_GROUP
from tripletune.schemas.answers import candidate_letters
from tripletune.schemas.generate import EXAMPLES
from tripletune.store.meter import Meter
from tripletune.store.parquet import write_parquet
from tripletune.store.shards import shard_name

FILES, VOCABULARY, FILMS, CANDIDATES, LIKES = 64, 32_000, 20_000, 26, 15
REPORT = Path(__file__).with_name("tokenize_200k.md")
_SYLLABLES = (
    *("al", "bar", "cor", "dun", "el", "far", "gal", "hol", "in", "jor", "kal", "lor", "mar"),
    *("nor", "os", "per", "quin", "ros", "sel", "tor", "ul", "ver", "wen", "yar", "zel"),
)
_FACTS = ("director", "actor", "genre", "tag", "writer")
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Run:
    """One number of processes, as measured."""

    workers: int
    seconds: float
    peak_gib: float
    disk_gib: float
    mean_tokens: float
    sha256: str


def word(random: np.random.Generator) -> str:
    return "".join(random.choice(_SYLLABLES, size=random.integers(2, 4))).capitalize()


def draw_titles(seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [
        f"{' '.join(word(random) for _ in range(random.integers(1, 4)))} ({random.integers(1930, 2024)})"
        for _ in range(FILMS)
    ]


def draw_examples(titles: list[str], number: int, first: int) -> Iterator[dict[str, Any]]:
    """Rows with the columns that training reads, and of the others what the schema asks for."""
    random, labels = np.random.default_rng([7, first]), candidate_letters(CANDIDATES)
    for user in range(first, first + number):
        films = random.choice(FILMS, size=LIKES + CANDIDATES, replace=False).tolist()
        liked, shown = films[:LIKES], films[LIKES:]
        retrieved = random.permutation(shown).tolist()
        fact = random.integers(FILMS, size=CANDIDATES)
        lines = ["The viewer liked, newest first:", *(f"- {titles[film]}" for film in liked), "", "Candidates:"]
        lines += [
            f"{label}. {titles[film]} | rank {retrieved.index(film) + 1} | {_FACTS[other % 5]}: {titles[other][:-7]}"
            for label, film, other in zip(labels, shown, fact, strict=True)
        ]
        lines += ["", "Which five of these will the viewer like most? Answer with five letters and nothing else."]
        answers = retrieved[:5]
        yield {
            "example_id": f"{user}:train:{LIKES}",
            "user_id": user,
            "purpose": "train",
            "cutoff": LIKES,
            "prompt": [
                {"role": "system", "content": "You recommend films. Answer with five lines and nothing else."},
                {"role": "user", "content": "\n".join(lines)},
            ],
            "completion": [{"role": "assistant", "content": "\n".join(labels[shown.index(film)] for film in answers)}],
            "answers": answers,
            "answer_ratings": [5.0] * 5,
            "candidates": shown,
            "candidate_titles": [titles[film] for film in shown],
            "candidate_letters": labels,
            "retrieved": retrieved,
            "liked": liked,
            "disliked": [],
        }


def prepare(work: Path, examples: int, objective: str) -> TrainingJob:
    """Write examples and tokenizer, and the job that reads them."""
    titles, files = draw_titles(7), []
    (work / "train").mkdir(parents=True)
    for number, first in enumerate(range(0, examples, -(-examples // FILES))):
        rows = draw_examples(titles, min(-(-examples // FILES), examples - first), first)
        schema = pl.Schema({name: kind for name, kind in EXAMPLES.items() if name in next(draw_examples(titles, 1, 0))})
        files.append(work / "train" / shard_name(f"{number:03d}"))
        write_parquet(files[-1], pl.DataFrame(list(rows), schema=schema), row_group_size=ROW_GROUP)
    train_tokenizer(iter(titles), VOCABULARY).save_pretrained(str(work / "base"))
    return TrainingJob(
        out=work,
        train=tuple(files),
        evaluation=None,
        answer_style="letters",
        base=str(work / "base"),
        hub_revision=None,
        base_name="tiny",
        settings=FinetuneConfig.model_validate({"objective": objective}),
        seed=7,
    )


def measure(job: TrainingJob, workers: int) -> Run:
    """Tokenise in this process and ``workers`` further ones (1: in this one alone)."""
    with Meter() as meter:
        write_token_files(job, workers)
    digest, files = hashlib.sha256(), sorted((job.tokens / TRAIN).glob("*.arrow"))
    for path in files:
        digest.update(path.read_bytes())
    lengths = token_lengths(read_token_files(job, TRAIN))
    disk = sum(path.stat().st_size for path in files) / 2**30
    return Run(workers, meter.seconds, meter.peak_bytes / 2**30, disk, float(np.mean(lengths)), digest.hexdigest())


def report(runs: list[Run], examples: int, objective: str, load: float) -> str:
    """The table, in Markdown."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("tokenizers", "transformers", "pyarrow"))
    cores = len(os.sched_getaffinity(0))
    same = len({run.sha256 for run in runs}) == 1
    lines = [
        "# Tokenising the examples of a training",
        "",
        "What is measured and how: the head of `tokenize_200k.py`.",
        "",
        f"{platform.machine()}, {cores} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB; Python "
        f"{platform.python_version()}, {libraries}; load before the run {load:.1f}",
        "(above 1, seconds are those of a shared machine)",
        f"`python benchmarks/tokenize_200k.py --examples {examples} --objective {objective}`; "
        f"{runs[0].mean_tokens:,.0f} tokens an example",
        "",
        "| examples | processes | seconds | examples/s | peak GiB | GiB on disk |",
        "|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {examples:,} | {run.workers} | {run.seconds:.1f} | {examples / run.seconds:,.0f} | "
            f"{run.peak_gib:.2f} | {run.disk_gib:.3f} |"
            for run in runs
        ),
        "",
        f"The files of all runs are {'identical' if same else 'NOT identical'}.",
    ]
    return "\n".join(lines) + "\n"


def main(
    examples: Annotated[int, typer.Option(help="Made-up examples.")] = 200_000,
    workers: Annotated[str, typer.Option(help="Numbers of processes, with commas.")] = "1,2,4",
    objective: Annotated[str, typer.Option(help="sft or listwise.")] = "sft",
    job: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Make examples, tokenise them with each number of processes, and write the page."""
    if job:
        done = measure(TrainingJob.model_validate_json(Path(job).read_bytes()), int(workers))
        print(json.dumps(asdict(done)))
        return
    load, runs = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as folder:
        made = prepare(Path(folder), examples, objective)
        for number in workers.split(","):
            out = Path(folder) / f"out-{number}"
            out.mkdir()
            (out / "job.json").write_text(made.model_copy(update={"out": out}).model_dump_json(), encoding="utf-8")
            command = [sys.executable, __file__, "--job", str(out / "job.json"), "--workers", number]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs.append(Run(**json.loads(told.splitlines()[-1])))
            console.print(f"{number:>3} processes: {runs[-1].seconds:.1f} s")
    text = report(runs, examples, objective, load)
    REPORT.write_text(text, encoding="utf-8")
    print(text)
    raise typer.Exit(len({run.sha256 for run in runs}) > 1)


if __name__ == "__main__":
    typer.run(main)
