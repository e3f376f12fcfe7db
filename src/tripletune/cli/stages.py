"""Commands that run a single stage, without Prefect."""

from __future__ import annotations

import json
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
    takes_inputs,
)
from tripletune.config.overrides import only_store
from tripletune.pipeline import stages
from tripletune.pipeline.handover import go_on
from tripletune.pipeline.registry import STAGES
from tripletune.pipeline.stage import Stage
from tripletune.pipeline.stage_lines import headline
from tripletune.store.runs import update_run

PANEL = "One stage, without Prefect"


def _add_command(stage: Stage) -> None:
    @takes_inputs(stage.name, panel=PANEL, help=stage.help)
    def run_stage(inputs: Inputs) -> None:
        settings, paths = inputs.resolve()
        folder = stage.run(paths, settings)
        paths.share(stage.name)
        say(headline(stage.name, paths.manifest(stage.name)["facts"]))
        say(str(folder))


for _stage in STAGES:
    if not _stage.never_reused:  # promote writes into a run's record, and follows below; quality is read by look.py
        _add_command(_stage)


@app.command(rich_help_panel=PANEL)
def promote(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the decision; move no alias, and record no run.")
    ] = False,
    config: ConfigOption = CONFIG,
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
    set: SetOption = None,
) -> None:
    """Move the champion alias in the MLflow registry to this adapter, or print the reason why not."""
    from tripletune.tracking import open_registry, recorded_run, stage_run

    inputs = Inputs(config=config, movielens=movielens, imdb=imdb, artifacts=artifacts, set=set or ())
    settings, paths = inputs.resolve()
    for stage in ("generate", "finetune", "evaluate"):
        paths.require(stage)
    if dry_run:
        from tripletune.promote.champion import preview

        found = preview(paths, settings, open_registry(settings.tracking, artifacts))
        say(json.dumps(found, indent=2))
        return
    with (
        recorded_run(settings, paths, {}, overrides=inputs.set) as (name, tracker),
        stage_run(tracker, "promote", {"run": name}) as child,
    ):
        folder = stages.run_promote(paths, settings, run=name, child=child)
    update_run(artifacts, name, stage=("promote", "made"))
    say((folder / "decision.json").read_text(encoding="utf-8"))


@app.command(rich_help_panel=PANEL)
def join(
    machine: Annotated[int, typer.Option("--machine", min=1, help="Number of this machine, from 1; 0 runs finetune.")],
    run: Annotated[
        str, typer.Option("--run", help="Name of the run that trains; empty: the one of this config and input.")
    ] = "",
    config: ConfigOption = CONFIG,
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
    set: SetOption = None,
) -> None:
    """Lend this machine's processes to a finetune over several machines, and end with it; machine 0 publishes.

    The shards are read here: from the shared store, or from an artifact folder of this machine. With --run the settings
    are those recorded, and of --config only [store] is read.
    """
    from tripletune.finetune.ranks import require_machine

    inputs = Inputs(config=config, movielens=movielens, imdb=imdb, artifacts=artifacts, set=set or ())
    if run:
        only_store(inputs.set)
        _, settings, paths = go_on(run, "finetune", inputs.load().store, artifacts)
    else:
        settings, paths = inputs.resolve()
    require_machine(settings.finetune, machine)
    stages.join_finetune(paths, settings, machine)
    say(f"machine {machine} is done; machine 0 publishes {paths.folder('finetune')}")
