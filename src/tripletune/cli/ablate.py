"""The command that runs an ablation set: ``ablate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from tripletune.cli.app import (
    ARTIFACTS,
    ArtifactsOption,
    ImdbOption,
    MovielensOption,
    SetOption,
    app,
    console,
    say,
)
from tripletune.cli.flow import prepare_flow

if TYPE_CHECKING:
    from tripletune.ablate.plan import Plan


@app.command(rich_help_panel="Run")
def ablate(
    set_file: Annotated[
        Path, typer.Argument(help="An ablation set in TOML; the shipped ones are in configs/ablations.")
    ],
    config: Annotated[str, typer.Option("--config", help="The base preset; empty: the one that the set names.")] = "",
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
    set: SetOption = None,
    member: Annotated[
        list[str] | None, typer.Option("--member", help="A member to run, next to the base; repeat it. None: all.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what each member would make and reuse, and run nothing.")
    ] = False,
) -> None:
    """Does a part of the prompts, the retriever or the model help? Run a set of changes and compare each with the base.

    Every member is a run of its own that makes only the stages its change reaches. A member that fails does not stop
    the others: it is named at the end, with exit code 2. The same command goes on after a kill, and repeats no member
    that has finished. Nothing is promoted. The results are in the last lines, and as Markdown, HTML and JSON in
    [bold]artifacts/<dataset>/ablations/[/].

    For example: [bold]tripletune ablate configs/ablations/hints.toml --imdb imdb --dry-run[/].
    """
    from tripletune.ablate.plan import plan_set
    from tripletune.ablate.sets import find_config, load_set

    found = load_set(set_file)
    preset = find_config(found, set_file, config)
    given, only = set or [], member or []
    plan = plan_set(found, set_file.stem, preset, artifacts, movielens=movielens, imdb=imdb, overrides=given, only=only)
    if dry_run:
        console().print(_plan_table(plan))
        return
    flow = prepare_flow("ablate", artifacts, "tripletune ablate")
    try:
        flow(
            set_file=str(set_file),
            config=str(preset),
            movielens=movielens,
            imdb=imdb,
            artifacts=str(artifacts),
            set=given,
            members=only,
        )
    finally:  # members that failed are an error, and the others have results
        _print_results(plan)


def _plan_table(plan: Plan) -> Table:
    """Of each member, what it changes and what becomes of its stages."""
    from tripletune.ablate.plan import stages_of

    runs = {tuple(one.paths.fingerprints.items()) for one in plan.members}
    title = f"ablation {plan.name} on {plan.config}: {len(runs)} runs"
    table = Table("member", "changes", "makes", "reuses", title=Text(title), title_justify="left")
    for one, stages in zip(plan.members, stages_of(plan), strict=True):
        made = [stage for stage, how in stages.items() if how == "make"]
        reused = len(stages) - len(made)
        of_others = sum(how not in ("make", "reuse") for how in stages.values())
        table.add_row(
            one.name,
            Text("\n".join(one.changes) or (f"row {one.row}" if one.row else "")),
            Text(f"{len(made)}: {', '.join(made)}" if made else "nothing"),
            f"{reused}" + (f", {of_others} of them from this set" if of_others else ""),
        )
    return table


def _print_results(plan: Plan) -> None:
    """The table, where the set came so far."""
    from tripletune.ablate.results import FILES, HEADS

    path = plan.folder / FILES[0]
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    table = Table(*HEADS, title=Text(f"ablation {plan.name}"), title_justify="left")
    for row in found["table"]:
        table.add_row(*map(Text, row))
    console().print(table)
    for sentence in found["said"]:
        say(sentence)
    say(f"results: {', '.join(str(plan.folder / name) for name in FILES)}")
