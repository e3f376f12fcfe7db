"""The sequence model trained on real ratings on a GPU: seconds to the best valid score, precisions, ablations.

    python benchmarks/gpu/sequence_ratings.py measure --releases DATA --out FILE.json    # ends by a deadline
    python benchmarks/gpu/sequence_ratings.py report FILE.json    # writes benchmarks/gpu/sequence_ratings.md

``DATA`` has a folder per release (and protocol) with the outputs ``split`` and ``text`` of its two stages. A training
is the stage's own, both fits; then fit b ranks the whole catalogue for every test user, without the films rated before,
ties by the catalogue's hash. ``VARIANTS``, or those of ``--variants`` (JSON: name to settings of ``[sequence]``), are
trained in turn on every release with each of ``--seeds``: the split stays, the training's draws differ.

First the defaults alone on the card, once in each precision: their seconds count. Then ``--workers`` processes share
the card: scores count there, seconds do not.
"""

# Shape letters in this file: U users
from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import torch
import typer
from report_command import add_report
from session import DEFAULT_MINUTES, Session

from tripletune.config import SequenceConfig
from tripletune.models.sequence.fit import train_sequence
from tripletune.models.sequence.serve import load_sequence
from tripletune.models.serving.catalogue import Likes, RatingEvents
from tripletune.models.serving.retriever import Histories
from tripletune.retrieve.histories import find_questions, find_seen, rated_columns, read_rows
from tripletune.schemas.query import QUERY_KEY
from tripletune.store.shards import split_files

REPORT = Path(__file__).with_name("sequence_ratings.md")
DEPTH = 20
RESERVE = 15.0
"""Seconds before the deadline at which the last results are awaited."""
VARIANTS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "no stars": {"stars": False},
    "no time": {"time": False},
    "no positions": {"positions": False},
    "likes alone": {"events": "likes"},
    "no text": {"content": []},
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass(frozen=True, slots=True)
class Job:
    """One training."""

    release: Path
    variant: str
    seed: int
    settings: SequenceConfig

    @property
    def name(self) -> str:
        return f"{self.release.name} | {self.variant} | {self.seed}"


def train(job: Job) -> tuple[str, dict[str, Any]]:
    """Train both fits, rank with fit b; the job's name and its figures."""
    torch.set_num_threads(1)
    split, content = job.release / "split", {"text": job.release / "text"}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        facts = train_sequence(split, out, job.settings, job.seed, content if job.settings.content else None)
        steps = pl.read_parquet(out / "curve.parquet").group_by("fit").agg(pl.col("step").max())["step"].sum()
        rank_U = test_ranks(split, out)
    gain_U = np.where(rank_U <= 10, 1 / np.log2(rank_U + 1), 0.0)
    found = {
        "valid_ndcg_at_10": facts["best_valid_ndcg_at_10"],
        "test_hr_at_10": float((rank_U <= 10).mean()),
        "test_ndcg_at_10": float(gain_U.mean()),
        "best_step": facts["steps"],
        "seconds": facts["seconds_per_step"] * steps,
        "seconds_to_best": facts["seconds_per_step"] * facts["steps"],
        "ranks": rank_U.tolist(),
    }
    return job.name, found


def test_ranks(split: Path, trained: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rank (U,) of every test user's answer in fit b's list, users ascending; ``DEPTH`` + 1 where it is not in it."""
    fit = load_sequence(trained, 0, ("b",))["b"]
    rows = read_rows(list(split_files(split).values())).collect().sort("user_id", "position")
    queries = find_questions(rows).filter(pl.col("purpose") == "test").sort(QUERY_KEY)
    numbered = queries.select(*QUERY_KEY).with_row_index("viewer")
    rated = find_seen(rows, queries).join(numbered, on=QUERY_KEY, maintain_order="left")
    rated = rated.sort("viewer", maintain_order=True)
    user_E, movie_E, time_E = (rated[name].to_numpy().astype(np.int64) for name in ("viewer", "movie_id", "timestamp"))
    histories = Histories(
        likes=Likes(*(np.zeros(0, np.int64) for _ in range(3))),
        events=RatingEvents(user_E, movie_E, rated["rating"].to_numpy(), time_E, rated["like"].to_numpy()),
        seen=rated_columns(rated, fit.catalogue, len(queries)),
        lightgcn_UD=torch.zeros(len(queries), 1),
    )
    answers = queries.join(rows.select("user_id", "movie_id", cutoff="position"), on=["user_id", "cutoff"])
    answer_U = answers.sort(QUERY_KEY)["movie_id"].to_numpy()
    is_answer_UK = fit.catalogue.movie_ids(fit.top("sequence", histories, DEPTH)) == answer_U[:, None]
    return np.where(is_answer_UK.any(axis=1), is_answer_UK.argmax(axis=1), DEPTH) + 1


@app.command()
def measure(
    releases: Annotated[Path, typer.Option(help="folder of releases, each with split and text")],
    out: Annotated[Path, typer.Option(help="JSON file of the results")],
    variants: Annotated[Path | None, typer.Option(help="JSON file of other settings to compare")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="of the trainings; the first is also timed alone")] = None,
    workers: Annotated[int, typer.Option(help="processes that share the card")] = 8,
    device: Annotated[str, typer.Option(help="cuda, or cpu to see that it runs")] = "cuda",
    max_steps: Annotated[int | None, typer.Option(help="end every training after so many steps")] = None,
    minutes: Annotated[float, typer.Option(help="deadline")] = DEFAULT_MINUTES,
) -> None:
    """Measure on this machine."""
    if device == "cuda" and not torch.cuda.is_available():
        print("sequence_ratings: torch sees no GPU here, so nothing was measured")
        return
    every = json.loads(variants.read_text(encoding="utf-8")) if variants else VARIANTS
    fixed = {"device": device} | ({} if max_steps is None else {"max_steps": max_steps})
    folders, seeds = sorted(path for path in releases.iterdir() if path.is_dir()), seeds or [7]
    alone = [
        Job(folder, f"alone, {precision}", seeds[0], SequenceConfig.model_validate(fixed | {"precision": precision}))
        for precision in ("float32", "bfloat16")
        for folder in folders
    ]
    shared = [
        Job(folder, name, seed, SequenceConfig.model_validate(fixed | settings))
        for seed in seeds
        for name, settings in every.items()
        for folder in folders
    ]
    with Session("sequence_ratings", torch.device(device), out, minutes) as session:
        if not variants:
            for job in alone:
                session.record(*train(job))
        with multiprocessing.get_context("spawn").Pool(min(workers, len(shared))) as pool:
            results = pool.imap_unordered(train, shared)
            try:
                for _ in shared:
                    session.record(*results.next(timeout=session.seconds_left - RESERVE))
            except multiprocessing.TimeoutError:
                session.record("cut", "not all trainings ended before the deadline")


def format_report(page: dict[str, Any]) -> str:
    """The Markdown page of a JSON file."""
    where = page["environment"]
    card = where["card"] or f"{where['machine']} CPU"
    lines = [
        "# The sequence model on real ratings, on a GPU",
        "",
        "What is measured: the head of `sequence_ratings.py`.",
    ]
    run = f"{card}; torch {where['torch']}; commit {where['commit']}; ended: {page['ended']}"
    lines += ["", run, f"`{page['command']}`", ""]
    found = {tuple(name.split(" | ")): value for name, value in page["results"].items() if " | " in name}
    lines += ["| release | alone on the card | seconds, both fits | to the best valid | valid ndcg_at_10 | test |"]
    lines += ["|---|---|--:|--:|--:|--:|"]
    for (release, variant, _), value in found.items():
        if variant.startswith("alone"):
            lines.append(
                f"| {release} | {variant.removeprefix('alone, ')} | {value['seconds']:.1f} | "
                f"{value['seconds_to_best']:.1f} | {value['valid_ndcg_at_10']:.4f} | {value['test_ndcg_at_10']:.4f} |"
            )
    releases = sorted({release for release, _, _ in found})
    lines += ["", "Test hr_at_10 / ndcg_at_10, mean over the seeds (±: standard deviation):", ""]
    lines += ["| | " + " | ".join(releases) + " |", "|---|" + "--:|" * len(releases)]
    for variant in dict.fromkeys(variant for _, variant, _ in found if not variant.startswith("alone")):
        cells = [_cell([value for key, value in found.items() if key[:2] == (name, variant)]) for name in releases]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(values: list[dict[str, Any]]) -> str:
    if not values:
        return ""
    texts = []
    for metric in ("test_hr_at_10", "test_ndcg_at_10"):
        each = np.array([value[metric] for value in values])
        texts.append(f"{each.mean():.4f}" + (f" ± {each.std(ddof=1):.4f}" if len(each) > 1 else ""))
    return " / ".join(texts)


report = add_report(app, format_report, REPORT)

if __name__ == "__main__":
    sys.exit(app())
