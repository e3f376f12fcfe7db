"""The command that runs earlier days: ``backfill``."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tripletune.cli.app import (
    ARTIFACTS,
    CONFIG,
    ArtifactsOption,
    ConfigOption,
    ImdbOption,
    Inputs,
    MovielensOption,
    SetOption,
    app,
    console,
    say,
)
from tripletune.cli.flow import prepare_flow

DAY = ["%Y-%m-%d"]


@app.command(rich_help_panel="Run")
def backfill(
    first: Annotated[datetime, typer.Option("--from", formats=DAY, help="The first day (UTC).")],
    last: Annotated[
        datetime | None, typer.Option("--to", formats=DAY, help="The last day (UTC); empty: today.")
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Days from one run to the next.")] = 1,
    until: Annotated[
        str, typer.Option("--until", help="The last part that each day runs: shards, finetune or rank.")
    ] = "shards",
    config: ConfigOption = CONFIG,
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
    set: SetOption = None,
) -> None:
    """Run the days that were missed, or that nobody ran: each on the ratings and tags that were there on that day.

    Days run in order, oldest first; the same command goes on after a kill and repeats none that is done. Nothing is
    promoted, and later runs are not compared with these. specialists.every_days says how often the specialists are
    trained. The table of the days is in [bold]artifacts/<dataset>/backfills/[/].

    For example: [bold]tripletune backfill --from 2018-09-01 --to 2018-09-05 --config configs/ml-latest-small.toml --set
    specialists.every_days=7[/].
    """
    from tripletune.backfill import FILES, HEADS, Day, cells, days_of, parts_until

    day = first.date()
    end: date = last.date() if last else datetime.now(UTC).date()
    days_of(day, end, every)  # a mistake shows before Prefect starts
    parts_until(until)
    given = set or []
    Inputs(
        config=config, movielens=movielens, imdb=imdb, artifacts=artifacts, set=[*given, f"ingest.as_of={day}"]
    ).resolve()
    flow = prepare_flow("backfill", artifacts, "tripletune backfill")
    options = {"config": config, "movielens": movielens, "imdb": imdb, "artifacts": str(artifacts), "set": given}
    folder = Path(flow(first=day, last=end, every=every, until=until, **options))
    table = Table(*HEADS, title=Text(f"backfill {folder.name}"), title_justify="left")
    for one in json.loads((folder / FILES[0]).read_text(encoding="utf-8")):
        table.add_row(*map(Text, cells(Day(**one))))
    console().print(table)
    say(f"table: {', '.join(str(folder / name) for name in FILES)}")
