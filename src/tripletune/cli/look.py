"""Commands that read runs and their outputs: ``runs``, ``show``, ``report``, ``quality``, ``audit``, ``prompt``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tripletune.cli.app import (
    ARTIFACTS,
    ArtifactsOption,
    JsonOption,
    RunArgument,
    RunOption,
    app,
    console,
    say_json,
)
from tripletune.errors import UserError
from tripletune.schemas.finetune import TRAINED_EXAMPLES_NAME
from tripletune.store.files import make_folder
from tripletune.store.paths import MANIFEST, RunPaths
from tripletune.store.request_time import request_time_note
from tripletune.store.runs import list_runs, quality_folder, read_run


@app.command(rich_help_panel="Look")
def runs(
    dataset: Annotated[str, typer.Option("--dataset", help="Runs of this dataset; empty: of all.")] = "",
    last: Annotated[int, typer.Option("--last", min=0, help="How many of the newest; 0: all.")] = 20,
    members: Annotated[
        bool, typer.Option("--members", help="Also members of ablation sets, and runs as of a day.")
    ] = False,
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """List the runs, newest last: how each ended, what it serves is worth on test, and which one is the champion."""
    from tripletune.cli.overview import run_rows, runs_table

    found = [one for one in list_runs(artifacts) if members or not one.is_aside]
    known = sorted({one.dataset for one in found})
    if dataset and dataset not in known:
        raise UserError(f"--dataset {dataset!r}: no run of it in {artifacts}; there are {', '.join(known) or 'none'}")
    found = [one for one in found if dataset in ("", one.dataset)]
    shown = found[-last:] if last else found
    rows = run_rows(shown, artifacts)
    if as_json:
        say_json([row._asdict() for row in rows])
    else:
        console().print(runs_table(rows, len(found) - len(shown)))


@app.command(rich_help_panel="Look")
def show(
    run: RunArgument = "",
    full: Annotated[bool, typer.Option("--full", help="Every stage with lineage and facts, and all metrics.")] = False,
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """What a run did and showed, whether it was promoted, and where its pages are; --full: from the ratings file on."""
    record = read_run(artifacts, run)
    if full and not as_json:
        from tripletune.cli.inspect import show_run

        console().print(show_run(record, artifacts))
        return
    from tripletune.cli.overview import overview, overview_text, run_as_data

    if as_json:
        say_json(run_as_data(record, artifacts))
    else:
        console().print(overview_text(overview(record, artifacts)), soft_wrap=True)


@app.command(rich_help_panel="Look")
def quality(run: RunArgument = "", as_json: JsonOption = False, artifacts: ArtifactsOption = ARTIFACTS) -> None:
    """What is in a run's shards, how far they moved since the last run's, and where the page about them is.

    Every run measures its shards before anything trains on them; this reads what it found, and changes nothing.
    """
    from tripletune.cli.overview import quality_view, read_quality
    from tripletune.quality import PAGE

    record = read_run(artifacts, run or _latest_measured(artifacts))
    figures = read_quality(record, artifacts)
    if as_json:
        say_json(figures)
    else:
        page = quality_folder(artifacts, record.dataset, record.name) / PAGE
        console().print(quality_view(figures, page), soft_wrap=True)


def _latest_measured(artifacts: Path) -> str:
    """The newest run that measured its shards; empty: none did."""
    return next((one.name for one in reversed(list_runs(artifacts)) if "quality" in one.stages), "")


@app.command(rich_help_panel="Look")
def report(run: RunArgument = "", artifacts: ArtifactsOption = ARTIFACTS) -> None:
    """Write a run's report again, as after its promotion, and print its verdicts and where it is."""
    from tripletune.summary import summarise_run

    found = summarise_run(read_run(artifacts, run, needs="evaluate"), artifacts)
    console().print(found.markdown(), markup=False, soft_wrap=True)
    console().print(str(found.page), markup=False, soft_wrap=True)


@app.command(rich_help_panel="Look")
def audit(
    run: RunOption = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="A CSV file for all leaks; the screen shows the first of each kind.")
    ] = None,
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Prove on the written shards that no answer leaked; exit code 1 and the example ids if one did."""
    from tripletune.audit.ancestors import ancestor_leaks
    from tripletune.audit.audit import audit_shards, stated_inline, stated_style
    from tripletune.audit.forms import audit_forms
    from tripletune.audit.late import late_leaks
    from tripletune.audit.leaks import MAX_PER_KIND, format_leaks, write_leaks
    from tripletune.prompts.template import load_template

    record = read_run(artifacts, run or _latest_published(artifacts, "generate"), needs="generate")
    paths = record.paths(artifacts)
    shards, split, retrieve = (_published(paths, stage) for stage in ("generate", "split", "retrieve"))
    trained = {stage: _published(paths, stage) for stage in record.settings().trained_stages}
    # shards of versions that stated no style were made with a shipped template, which still has it
    style = stated_style(shards) or load_template(record.settings().prompt.template).answers
    limit, inline = None if out else MAX_PER_KIND, stated_inline(shards)
    leaks = audit_shards(shards, split, retrieve, trained, style=style, inline=inline, limit=limit)
    if "finetune" in paths.fingerprints and (paths.folder("finetune") / TRAINED_EXAMPLES_NAME).is_file():
        leaks += ancestor_leaks(paths.folder("finetune"), shards, limit=limit)
    everything = {stage: paths.folder(stage) for stage in paths.fingerprints if paths.is_here(stage)}
    leaks += late_leaks(everything, record.settings().ingest.as_of, limit=limit)
    if "forms" in paths.fingerprints and (paths.folder("forms") / MANIFEST).is_file():
        texts = load_template(record.settings().prompt.template).further_forms()
        leaks += audit_forms(shards, paths.folder("forms"), texts, limit)
    if out:
        make_folder(out.parent, "--out")
        write_leaks(out, leaks)
    note = request_time_note(trained)
    if as_json:
        say_json({"run": record.name, "leaks": [asdict(leak) for leak in leaks], "note": note})
    else:
        console().print(f"{record.name}: {format_leaks(leaks)}", markup=False, emoji=False, soft_wrap=True)
        if note:
            console().print(note, markup=False, soft_wrap=True)
    if leaks:
        raise typer.Exit(1)


def _latest_published(artifacts: Path, stage: str) -> str:
    """The newest run whose output was published, whole or not: the audit names what is damaged."""
    for record in reversed(list_runs(artifacts)):
        if stage in record.fingerprints and (record.paths(artifacts).folder(stage) / MANIFEST).is_file():
            return record.name
    return ""


def _published(paths: RunPaths, stage: str) -> Path:
    return paths.folder(stage) if (paths.folder(stage) / MANIFEST).is_file() else paths.require(stage)


@app.command(rich_help_panel="Look")
def prompt(
    user: Annotated[int, typer.Option("--user", help="A user id of the release.")],
    purpose: Annotated[str, typer.Option("--purpose", help="train, valid or test.")] = "test",
    cutoff: Annotated[
        int | None, typer.Option("--cutoff", help="Of several examples, the one with this cutoff.")
    ] = None,
    run: RunOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Print a user's prompt as it stands in the shards, each line with its origin."""
    from tripletune.cli.recommend import explain_prompt

    if purpose not in ("train", "valid", "test"):
        raise UserError(f"--purpose {purpose!r}: there are train, valid and test")
    record = read_run(artifacts, run, needs="generate")
    table = Table("line", "comes from", box=None, pad_edge=False)
    for line, origin in explain_prompt(record.paths(artifacts), record.settings(), user, purpose, cutoff):
        table.add_row(Text(line), Text(origin, style="dim"))
    console().print(table)
