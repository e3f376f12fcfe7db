"""Commands that read a run's outputs: ``show``, ``report``, ``audit`` and ``prompt``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tripletune.cli.app import ARTIFACTS, ArtifactsOption, RunOption, app, console
from tripletune.errors import UserError
from tripletune.schemas.finetune import TRAINED_EXAMPLES_NAME
from tripletune.store.files import make_folder
from tripletune.store.paths import MANIFEST, RunPaths
from tripletune.store.request_time import request_time_note
from tripletune.store.runs import list_runs, read_run


@app.command(rich_help_panel="Look")
def show(
    run: Annotated[str, typer.Argument(help="Name of a run; empty: the latest.")] = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Lineage, facts and metrics of a run, from the ratings file to the adapter."""
    from tripletune.cli.inspect import show_run

    console().print(show_run(read_run(artifacts, run), artifacts))


@app.command(rich_help_panel="Look")
def report(
    run: Annotated[str, typer.Argument(help="Name of a run; empty: the latest that is evaluated.")] = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
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
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Prove on the written shards that no answer leaked; exit code 1 and the example ids if one did."""
    from tripletune.audit.ancestors import ancestor_leaks
    from tripletune.audit.audit import audit_shards, stated_inline, stated_style
    from tripletune.audit.forms import audit_forms
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
    if "forms" in paths.fingerprints and (paths.folder("forms") / MANIFEST).is_file():
        texts = load_template(record.settings().prompt.template).further_forms()
        leaks += audit_forms(shards, paths.folder("forms"), texts, limit)
    if out:
        make_folder(out.parent, "--out")
        write_leaks(out, leaks)
    console().print(f"{record.name}: {format_leaks(leaks)}", markup=False, emoji=False, soft_wrap=True)
    if note := request_time_note(trained):
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
