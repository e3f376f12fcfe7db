"""A backfill: runs as of a range of days, each on the ratings that were there, and one table of them.

Runs as of a day stand aside (``RunRecord.is_aside``): they are no baseline of drift and never promoted. What has
finished is known from the run files, so the same backfill started again repeats no day that is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from tripletune.errors import ConfigError
from tripletune.store.files import make_folder, write_atomically, write_json
from tripletune.store.paths import RunPaths, read_manifest
from tripletune.store.runs import RunRecord, list_runs

ID = "backfill.id"
"""Tag of the runs of one backfill, in their files and in MLflow."""
PARTS = ("shards", "finetune", "rank")
"""Parts of a run, in order."""
FILES = ("backfill.json", "backfill.md")
HEADS = ("day", "run", "state", "ratings", "left out", "examples", "stages made", "stages reused", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """One day of a backfill, as it ended."""

    day: str
    """ISO 8601; ratings of this day and later do not count."""
    run: str
    state: str
    """``ran`` or ``finished before``."""
    ratings: int
    left_out: int
    """Ratings of the day and later."""
    examples: dict[str, int]
    """By purpose."""
    made: list[str]
    """Stages."""
    reused: list[str]
    seconds: float
    """Of the stages it made."""


def days_of(first: date, last: date, every: int) -> list[date]:
    """The days from ``first`` to ``last``, ``every`` so many.

    Raises:
        ConfigError: there are none.
    """
    if last < first or every < 1:
        raise ConfigError(
            f"a backfill from {first} to {last}, every {every} days, has no day; give the earlier day first, and every "
            "as 1 or more"
        )
    return [first + timedelta(days=passed) for passed in range(0, (last - first).days + 1, every)]


def parts_until(until: str) -> tuple[str, ...]:
    """The parts of a run up to one of them.

    Raises:
        ConfigError: there is no such part.
    """
    if until not in PARTS:
        raise ConfigError(f"until = {until!r}: there are {', '.join(PARTS)}")
    return PARTS[: PARTS.index(until) + 1]


def finished_run(paths: RunPaths, day: date, last_stage: str) -> RunRecord | None:
    """The completed run as of a day with these very outputs, where the last of them is still there."""
    for record in reversed(list_runs(paths.root)):
        same = record.as_of == day.isoformat() and record.fingerprints == dict(paths.fingerprints)
        if same and record.status == "completed" and last_stage in record.stages and paths.is_here(last_stage):
            return record
    return None


def day_of(record: RunRecord, root: Path, state: str) -> Day:
    """What a finished run of a backfill made."""
    paths = record.paths(root)
    manifests = {stage: read_manifest(paths.folder(stage)) or {} for stage in record.fingerprints}
    facts: dict[str, dict[str, Any]] = {stage: manifest.get("facts", {}) for stage, manifest in manifests.items()}
    made = [stage for stage, how in record.stages.items() if how == "made"]
    return Day(
        day=record.as_of,
        run=record.name,
        state=state,
        ratings=facts["ingest"].get("rows_kept", 0),
        left_out=facts["ingest"].get("left_out_as_later", {}).get("ratings", 0),
        examples=facts["generate"].get("examples", {}),
        made=made,
        reused=[stage for stage, how in record.stages.items() if how == "reused"],
        seconds=round(sum(manifests.get(stage, {}).get("seconds", 0.0) for stage in made), 1),
    )


def write_days(folder: Path, days: Sequence[Day]) -> list[Path]:
    """Write the table as JSON and as Markdown; called after every day, so that it is there after a kill.

    Raises:
        InputError: the folder cannot be made.
    """
    make_folder(folder, "--artifacts")
    as_json, as_markdown = (folder / name for name in FILES)
    write_json(as_json, [asdict(one) for one in days])
    rows = [HEADS, ["---"] * len(HEADS), *map(cells, days)]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    write_atomically(as_markdown, lambda part: part.write_text(text, encoding="utf-8"))
    return [as_json, as_markdown]


def cells(one: Day) -> list[str]:
    """A day's cells under ``HEADS``."""
    examples = ", ".join(f"{purpose} {count:,}" for purpose, count in one.examples.items())
    ratings = [f"{number:,}" for number in (one.ratings, one.left_out)]
    return [
        one.day,
        one.run,
        one.state,
        *ratings,
        examples,
        str(len(one.made)),
        str(len(one.reused)),
        f"{one.seconds:,.1f}",
    ]
