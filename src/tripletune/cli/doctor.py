"""The command that finds what would lose a run before it starts: ``doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

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
    say,
)


@app.command(rich_help_panel="Run")
def doctor(
    config: ConfigOption = CONFIG,
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of the checks.")] = False,
    set: SetOption = None,
) -> None:
    """Check in seconds what a run needs: versions, disk, memory, GPUs, servers, inputs, base model, locale, clock.

    Each check is a line: [bold]ok[/], [bold]warn[/] (the run goes on, worse or slower than it could) or [bold]fail[/]
    (the run would be lost), and what to do. Exit code 0 without a fail, 2 with one. Nothing is trained, downloaded or
    written. The nightly flows run the same checks first, on the machine of their worker.

    For example: [bold]tripletune doctor --config configs/ml-32m.toml[/] before the deployment's schedule is started.
    """
    from tripletune.doctor.check import worst
    from tripletune.doctor.examine import examine
    from tripletune.doctor.servers import check_prefect

    settings = Inputs(config=config, movielens=movielens, imdb=imdb, artifacts=artifacts, set=set or ()).load()
    checks = [check_prefect(), *examine(settings, artifacts)]
    if as_json:
        say(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            say(f"{check.status:<4}  {check}")
    if worst(check.status for check in checks) == "fail":
        raise typer.Exit(2)
