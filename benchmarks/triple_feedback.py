"""Measure what a choice of facts learned from feedback reaches, from a spoiled start: planted preferences.

    python benchmarks/triple_feedback.py
    python benchmarks/triple_feedback.py --viewers 20000 --movies 1000

A synthetic release whose users each prefer one entity or none, as in ``rgat_choice.py``. Of training users facts are
shown and measured; both learners learn from that log; their choices for valid queries are placed between random (0)
and the best possible detector (1) on liked films that carry the user's preference.

**The reader is simulated.** A tiny language model's log-probabilities are noise, so a *planted listener* stands in for
the probe stage: the right answer's log-probability rises by 0.5 nats if the shown fact is the one that the user's
planted preference is about, plus normal noise of 0.5 nats. From the log onward everything is what a run does: the
files, the audit, the propensities of ``choose_triples``, ``learn_selector`` and its guards, and the choice by
``Selector``. No answer and no preference of a valid query is in the log.

Starts: ``random`` shows a fact at random (the spoiled start); ``personal`` shows R-GAT's, and a tenth of the films
are explored. ``ignored`` is a planted fault: the log of the second start, its propensities set to the same number.

Writes triple_feedback.md.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from rgat_choice import make
from rgat_measures import SEED, Questions, measure_planted

from tripletune.config import SelectorConfig
from tripletune.retrieve.histories import read_fit_likes, read_rows
from tripletune.retrieve.learned import Selector
from tripletune.retrieve.profiles import RelationTable
from tripletune.retrieve.triple_features import TripleFeatures
from tripletune.retrieve.triples import Choice, Exploration, Scorer, choose_triples
from tripletune.schemas.base import conform
from tripletune.schemas.probe import FACT_CHANGES, FACT_CHANGES_NAME
from tripletune.schemas.query import FIT_LABELS, PURPOSES
from tripletune.schemas.retrieve import CHOICES
from tripletune.schemas.training import TRAINED_ON
from tripletune.selector.log import RunLog
from tripletune.selector.selector import LEARNERS, Judging, learn_selector
from tripletune.store.shards import split_files

REPORT = Path(__file__).with_name("triple_feedback.md")
GAIN, NOISE = 0.5, 0.5
"""Of the planted listener, in nats."""
LIKED, OTHERS, PROBED = 5, 10, 8
"""Newest liked films and films drawn from the catalogue whose facts are shown to a user, and facts that are probed."""
EXPLORED = 0.1
READERS = 6000
"""Training users who are shown facts and read some."""


def write_fit_likes(folders: dict[str, Path], out: Path) -> Path:
    """What LightGCN would note of its training likes, which needs no training: the rows of its labels."""
    rows = read_rows(list(split_files(folders["split"]).values())).filter(~pl.col("unseen")).collect()
    rows = rows.sort("user_id", "position")
    parts = [
        rows.filter(pl.col("label").is_in(labels)).with_columns(fit=pl.lit(fit)) for fit, labels in FIT_LABELS.items()
    ]
    out.mkdir(parents=True, exist_ok=True)
    conform(pl.concat(parts), TRAINED_ON).sort("fit", "user_id", maintain_order=True).write_parquet(
        out / "trained_on.parquet"
    )
    return out


def write_log(folders: dict[str, Path], release: Path, out: Path, start: Choice, explored: float) -> RunLog:
    """Show facts to training users, let the planted listener read some of them, and write a run's files."""
    shutil.rmtree(out, ignore_errors=True)
    asked, rng = Questions.read(folders, "train"), np.random.default_rng(SEED)
    shown = pl.concat(_show(asked, start, explored, rng))
    readers = rng.choice(asked.viewers["user_id"].to_numpy(), min(READERS, len(asked.viewers)), replace=False)
    shown = shown.filter(pl.col("user_id").is_in(readers.tolist()))
    of_user = shown.with_columns(drawn=pl.Series(rng.random(len(shown)))).sort("user_id", "drawn")
    number = pl.int_range(pl.len()).over("user_id")
    share = (PROBED / pl.len().over("user_id")).clip(upper_bound=1.0)
    probed = of_user.with_columns(number=number, share=share).filter(pl.col("number") < PROBED)
    truth = pl.read_parquet(release / "truth.parquet").with_columns(pl.col("kind").cast(pl.String))
    told = probed.join(truth, on="user_id").with_columns(
        is_planted=(pl.col("relation") == pl.col("kind")) & (pl.col("entity") == pl.col("key"))
    )
    noise = rng.normal(0.0, NOISE, len(told))
    changes = told.with_columns(
        example_id=pl.format("{}:train:{}", "user_id", "cutoff"),
        system=pl.lit("tuned"),
        how=pl.lit("without"),
        before=pl.lit(-3.0),
        change=GAIN * pl.col("is_planted").fill_null(False) + pl.Series(noise),
        distance=pl.lit(0.1),
        first_changed=pl.lit(False),
    )
    answers = asked.rows.filter(pl.col("label") == "target").group_by("user_id").agg(answers="movie_id")
    examples = changes.select("example_id", "user_id", "cutoff").unique().join(answers, on="user_id")
    run = RunLog(out / "probe", out / "generate", out / "retrieve", folders["split"])
    _write(run.probe / FACT_CHANGES_NAME, conform(changes, FACT_CHANGES))
    _write(run.retrieve / "choices" / "shard-000.parquet", conform(shown, CHOICES))
    _write(run.generate / "train" / "shard-000.parquet", examples)
    return run


def _show(asked: Questions, start: Choice, explored: float, rng: np.random.Generator) -> list[pl.DataFrame]:
    parts = []
    for first, block, likes in asked.blocks():
        queries = asked.viewers.slice(first, 2000)
        num = len(queries)
        others = pl.DataFrame(
            {"viewer": np.repeat(np.arange(num), OTHERS), "movie_id": rng.choice(asked.table.films, num * OTHERS)}
        )
        liked = block.filter(pl.col("age") < LIKED).select("viewer", "movie_id")
        pairs = pl.concat([liked, others], how="vertical_relaxed").unique().sort("viewer", "movie_id")
        chosen = choose_triples(
            asked.table,
            asked.rgat,
            likes,
            queries["user_id"].to_numpy().astype(np.int64),
            pairs["viewer"].to_numpy().astype(np.int64),
            pairs["movie_id"].to_numpy().astype(np.int64),
            mode=start,
            num=1,
            seed=SEED,
            exploration=Exploration(explored, queries["cutoff"].to_numpy().astype(np.int64)) if explored else None,
        )
        named = queries[pairs["viewer"].to_numpy()].select(
            "user_id", pl.lit("train", PURPOSES).alias("purpose"), "cutoff"
        )
        keyed = named.hstack(pairs.select("movie_id"))[chosen["pair"].to_numpy()]
        parts.append(keyed.hstack(chosen.drop("pair")))
    return parts


def _write(path: Path, frame: pl.DataFrame) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path)


def ignore_propensities(run: RunLog, out: Path) -> RunLog:
    """The same log as if every fact had been drawn with the same probability."""
    path = out / "choices" / "shard-000.parquet"
    choices = pl.read_parquet(run.retrieve / "choices" / "shard-000.parquet")
    _write(path, choices.with_columns(propensity=pl.lit(0.5)))
    return RunLog(run.probe, run.generate, out, run.split)


def learn_all(run: RunLog, folders: dict[str, Path], lightgcn: Path, out: Path) -> dict[str, dict[str, Any]]:
    """What ``selector.json`` holds for each learner."""
    found = {}
    for learner in LEARNERS:
        began = time.perf_counter()
        folder = out / learner
        folder.mkdir(parents=True, exist_ok=True)
        learn_selector(
            run,
            *(folders[name] for name in ("split", "knowledge", "rgat")),
            lightgcn,
            folder,
            SelectorConfig(learner=learner),  # type: ignore[arg-type]
            Judging(confidence=0.95, resamples=1000, seed=SEED),
        )
        found[learner] = json.loads((folder / "selector.json").read_text("utf-8"))
        print(f"{folder}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return found


def scorers(asked: Questions, lightgcn: Path, weights: Mapping[str, Mapping[str, float]]) -> dict[str, Scorer]:
    """The choices of a fit by their weights."""
    relations = RelationTable.build(asked.table, asked.rgat)
    features = TripleFeatures.build(asked.table, asked.rgat, relations, read_fit_likes(lightgcn, "b"))
    return {name: Selector(features, one) for name, one in weights.items()}


def render(title: str, command: str, places: dict[str, Any], logs: dict[str, dict[str, Any]]) -> str:
    """The page."""
    head = __doc__.split("\n\n")
    lines = [
        "# A choice of facts learned from feedback",
        "",
        "What is measured and how: the head of `triple_feedback.py`.",
        "",
    ]
    lines += [f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}", "", head[3], ""]
    lines += [f"## {title}", "", f"`{command}`", ""]
    warm, unseen = places["warm"], places["unseen"]
    lines += ["| Chosen entity, on liked films that carry it | warm | place | 95 % | unseen | place | 95 % |"]
    lines += ["|---|--:|--:|---|--:|--:|---|"]
    for name in warm:
        cells = [
            f"{one['share']:.3f} | {one['place']:.3f} | {one['interval'][0]:.3f} to {one['interval'][1]:.3f}"
            for one in (warm[name], unseen[name])
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Off-policy, in nats per fact, on training users that were not learned from:", ""]
    lines += [
        "| start | choice | SNIPS | doubly robust | 95 % | minus personal | 95 % |",
        "|---|---|--:|--:|---|--:|---|",
    ]
    for start, learned in logs.items():
        for name, one in learned["regression"].get("values", {}).items():
            lines.append(
                f"| {start} | {name} | {one['snips']:.4f} | {one['robust']:.4f} "
                f"| {one['low']:.4f} to {one['high']:.4f} | {one['minus_personal']:+.4f} "
                f"| {one['minus_personal_low']:.4f} to {one['minus_personal_high']:.4f} |"
            )
    lines.append("")
    for start, learned in logs.items():
        logged = learned["regression"]["logged"]
        lines.append(
            f"Start {start}: {logged['facts']:,} facts of {logged['users']:,} users; mean weight of a draw "
            f"{logged['weight_of_a_draw']:.3f} ± {logged['weight_of_a_draw_error']:.3f}."
        )
        for learner, one in learned.items():
            lines.append(f"{learner}: {'refused: ' + one['refused'] if one['refused'] else 'used'}.")
        lines.append("")
    return "\n".join(lines)


def main(
    viewers: Annotated[int, typer.Option(help="Users of the made-up release.")] = 6000,
    movies: Annotated[int, typer.Option(help="Its films.")] = 600,
    strength: Annotated[float, typer.Option(help="Log-odds that a preference adds.")] = 2.5,
    artifacts: Annotated[Path, typer.Option(help="Where releases and stages are kept and found again.")] = Path(
        "artifacts"
    ),
) -> None:
    """Learn from a simulated reader's log, and place the learned choices between random and optimal."""
    name = f"planted-{viewers}-{movies}-{strength:g}"
    preset = f'dataset = "{name}"\nseed = {SEED}\n[synthetic]\n'
    preset += f"viewers = {viewers}\nmovies = {movies}\npreference_strength = {strength}\n"
    folders, _ = make(artifacts, preset, [])
    release, work = folders["ingest"] / "release", artifacts / f"feedback-{name}"
    started = time.perf_counter()
    lightgcn = write_fit_likes(folders, work / "lightgcn")
    runs = {
        "random": write_log(folders, release, work / "random", "random", 0.0),
        "personal": write_log(folders, release, work / "personal", "personal", EXPLORED),
    }
    runs["ignored"] = ignore_propensities(runs["personal"], work / "ignored")
    logs = {start: learn_all(run, folders, lightgcn, work / start / "selector") for start, run in runs.items()}
    weights = {
        f"{learner}, from {start}": one["weights"]
        for start, learned in logs.items()
        for learner, one in learned.items()
        if one["weights"]
    }
    found = measure_planted(folders, release, lambda asked: scorers(asked, lightgcn, weights))
    print(f"learned and measured in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    command = f"python benchmarks/triple_feedback.py --viewers {viewers} --movies {movies} --strength {strength:g}"
    title = f"{viewers:,} users, strength {strength:g}"
    REPORT.write_text(render(title, command, found["entity"], logs), encoding="utf-8")
    print(REPORT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
