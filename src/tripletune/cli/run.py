"""Commands about whole runs: ``run`` one, ``plan`` it, ``freeze`` its queries, and ``gc`` unused outputs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tripletune.cli.app import (
    ARTIFACTS,
    CONFIG,
    ArtifactsOption,
    ConfigOption,
    ImdbOption,
    Inputs,
    JsonOption,
    MovielensOption,
    RunOption,
    SetOption,
    app,
    console,
    say,
    say_json,
    takes_inputs,
)
from tripletune.cli.flow import prepare_flow
from tripletune.pipeline import stages
from tripletune.store.alive import is_alive
from tripletune.store.files import make_folder
from tripletune.store.runs import RunRecord, list_runs, read_run


@takes_inputs("run", panel="Run")
def run(inputs: Inputs) -> None:
    """Run the nightly flow: every stage whose output is not there yet, under Prefect, logged to MLflow."""
    settings, _ = inputs.resolve()  # a mistake shows before Prefect starts
    stages.require_one_answer(settings)
    nightly = prepare_flow("nightly", inputs.artifacts, "tripletune run")
    from tripletune.tracking import require_store

    require_store(settings.tracking, inputs.artifacts)
    options = {**asdict(inputs), "artifacts": str(inputs.artifacts), "set": list(inputs.set)}
    _print_summary(read_run(inputs.artifacts, nightly(**options)), inputs.artifacts)


def _print_summary(record: RunRecord, artifacts: Path) -> None:
    from tripletune.cli.inspect import metrics_tables, where_things_are

    screen = console()
    screen.print(metrics_tables(record.paths(artifacts).folder("evaluate"), record.settings().evaluate))
    screen.print(where_things_are(record, artifacts, record.settings()), soft_wrap=True)


@app.command(rich_help_panel="Run")
def plan(
    config: ConfigOption = CONFIG,
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
    as_json: JsonOption = False,
    set: SetOption = None,
) -> None:
    """Show which stages a run would rebuild, and which input, setting, source or library changed."""
    from tripletune.cli.inspect import plan_table, planned_stages

    inputs = Inputs(config=config, movielens=movielens, imdb=imdb, artifacts=artifacts, set=set or ())
    _, paths = inputs.resolve()
    if as_json:
        stages = [one._asdict() for one in planned_stages(paths)]
        say_json({"dataset": paths.dataset, "set": list(inputs.set), "stages": stages})
    else:
        console().print(plan_table(paths, inputs.set))


@app.command(rich_help_panel="Run")
def freeze(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    viewers: Annotated[
        int, typer.Option("--viewers", min=0, help="How many of the users with a test query; 0: all.")
    ] = 0,
    run: RunOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Write a run's valid and test queries to a file, so that later runs are evaluated on the same ones.

    Set split.frozen to the file: metrics are then of these users alone, with the same cutoffs and answers, and their
    later ratings train nothing.
    """
    from tripletune.data.split.frozen import freeze_queries
    from tripletune.store.parquet import write_parquet

    record = read_run(artifacts, run, needs="split")
    frozen = freeze_queries(record.paths(artifacts).require("split"), viewers, record.settings().seed)
    make_folder(out.parent, "--out")
    write_parquet(out, frozen)
    counts = f"{len(frozen):,} queries of {frozen['user_id'].n_unique():,} users"
    say(f"{out}: {counts} of {record.name}")


@app.command(rich_help_panel="Run")
def gc(
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="Newest runs of each dataset whose outputs are kept.")
    ] = 14,
    keep_run: Annotated[list[str] | None, typer.Option("--keep-run", help="A further run to keep; repeat it.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove; without it nothing is touched.")] = False,
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """List the outputs that no kept run refers to, and with --delete remove them.

    Kept are the newest runs of each dataset, runs named with --keep-run, runs still running, and runs whose
    specialists a kept one pins or whose adapter it learns from. Run files, promotion decisions, MLflow's store and the
    shared store are never removed; with --delete, a run whose process was killed is closed in its file and in MLflow.
    """
    from tripletune.cli.inspect import garbage_table
    from tripletune.pipeline.garbage import find_garbage, kept_runs, remove

    _close_dead(artifacts, close=delete)
    kept = kept_runs(artifacts, newest=keep, named=keep_run or [])
    garbage = find_garbage(artifacts, kept)
    if as_json:
        removed, held = remove(garbage) if delete else ([], [])
        lists = {"garbage": garbage, "removed": removed, "held": held}
        found = {name: [asdict(one) for one in folders] for name, folders in lists.items()}
        say_json({"kept": [run.name for run in kept], **found})
        return
    screen = console()
    screen.print(garbage_table(garbage, kept))
    for address in sorted({run.paths(artifacts).shared for run in kept} - {""}):
        say(f"{address} is not touched: a run that needs a removed output fetches it from there if it was pushed")
    if not garbage:
        return
    if not delete:
        screen.print("nothing was removed; add --delete")
        return
    removed, held = remove(garbage)
    screen.print(f"removed {len(removed)} outputs, {sum(one.num_bytes for one in removed) / 2**20:,.1f} MiB")
    for one in held:
        screen.print(f"left {one.folder}: a run holds it", markup=False, soft_wrap=True)


def _close_dead(artifacts: Path, *, close: bool) -> None:
    """Close the runs whose process is gone, or say which they are."""
    dead = [run.name for run in list_runs(artifacts) if run.status == "running" and not is_alive(artifacts, run)]
    if dead and close:
        from tripletune.dead_runs import close_dead_runs  # imports MLflow, which takes a second

        dead = close_dead_runs(artifacts)
    for name in dead:
        say(f"{name}: {'closed as killed' if close else 'its process is gone; --delete closes it'}")
