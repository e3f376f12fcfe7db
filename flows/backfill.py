"""Backfill: the runs that a range of days would have had, in order, and one table at the end."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from flows import TIMEOUT_SECONDS
from tasks.session import open_session
from tasks.stages import run_part
from tripletune.backfill import ID, day_of, days_of, finished_run, parts_until, write_days
from tripletune.config.presets import load_config
from tripletune.pipeline.resolve import resolve
from tripletune.store.runs import read_run

LAST_STAGE = {"shards": "generate", "finetune": "finetune", "rank": "evaluate"}
"""By part, the stage whose output shows that it has finished."""


@flow(name="tripletune-backfill-day", flow_run_name="{day}", task_runner=ThreadPoolTaskRunner(max_workers=2))
def backfill_day(
    day: str, config: str, movielens: str, imdb: str, artifacts: str, set: list[str], parts: list[str], backfill_id: str
) -> str:
    """Run the parts of a run as of a day; returns its name."""
    with open_session(
        config, movielens=movielens, imdb=imdb, artifacts=artifacts, overrides=set, belongs={ID: backfill_id}
    ) as session:
        for part in parts:
            run_part(session, part)
        return session.run


@flow(name="tripletune-backfill", timeout_seconds=TIMEOUT_SECONDS)
def backfill(
    first: date,
    last: date,
    every: int = 1,
    until: str = "shards",
    config: str = "configs/smoke.toml",
    movielens: str = "",
    imdb: str = "",
    artifacts: str = "artifacts",
    set: list[str] | None = None,
) -> str:
    """Run every day of a range that has not finished, oldest first, and return the table's folder.

    Nothing is promoted or compared with other runs. Specialists are trained as ``specialists.every_days`` says.

    Args:
        first, last: days (UTC); a run as of a day reads no rating of that day or later.
        every: days from one run to the next.
        until: the last part that each day runs: shards, finetune or rank.
        config, movielens, imdb, artifacts, set: as in ``nightly``.

    Raises:
        UserError: a setting or an input is wrong, or a day failed; the days before it are done, and the same call goes
            on from there.
    """
    days, parts, root = days_of(first, last, every), parts_until(until), Path(artifacts).expanduser()
    backfill_id = f"{first}-{last}-{every}-{until}"
    done, log = [], get_run_logger()
    for day in days:
        overrides = [*(set or ()), f"ingest.as_of={day}"]
        settings = load_config(Path(config), overrides, movielens=movielens, imdb=imdb)
        folder = root / settings.dataset / "backfills" / backfill_id
        before = finished_run(resolve(settings, root), day, LAST_STAGE[until])
        if before:
            record = before
        else:
            run = backfill_day(day.isoformat(), config, movielens, imdb, artifacts, overrides, list(parts), backfill_id)
            record = read_run(root, run)
        done.append(day_of(record, root, "finished before" if before else "ran"))
        _, table = write_days(folder, done)
        log.info("backfill %s: %s of %s days, %s %s", backfill_id, len(done), len(days), day, done[-1].state)
    create_markdown_artifact(table.read_text(encoding="utf-8"), key="tripletune-backfill", description=backfill_id)
    return str(folder)
