"""Commands that use a tuned model, and that change which one serves: ``recommend`` and ``rollback``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from tripletune.cli.app import ARTIFACTS, ArtifactsOption, RunOption, app, console, say
from tripletune.errors import UserError
from tripletune.store.runs import read_run

if TYPE_CHECKING:
    from tripletune.probe.explain import Reliance

SHOWN_PARTS = 8
"""Parts of the prompt in the table of what a recommendation relied on."""


@app.command(rich_help_panel="Serve")
def recommend(
    user: Annotated[int | None, typer.Option("--user", help="A user id of the release.")] = None,
    like: Annotated[list[str] | None, typer.Option("--like", help="A title, oldest first; repeat it.")] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Every user of the data, into the file --out.")] = False,
    users: Annotated[
        Path | None, typer.Option("--users", help="The users of a text file, an id on each line, into --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="With --all or --users: a Parquet file.")] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=0, help="With --out: processes that answer; 0: as rank.workers has it.")
    ] = 0,
    why: Annotated[
        bool, typer.Option("--why", help="Also measure which parts of the prompt the first film relied on.")
    ] = False,
    run: Annotated[
        str, typer.Option("--run", help="A run whose own model answers; empty: the champion of the latest one's data.")
    ] = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Top five for --user ID, or for anybody who likes --like "Heat (1995)" --like ...; each with its reason.

    The champion answers; where there is none yet, the latest run's own model. A line says which model and run it was.

    --all --out recs.parquet recommends to every user. A killed call goes on where it was, and the bytes do not depend
    on --workers.
    """
    chosen = [user is not None, bool(like), everybody, users is not None]
    if sum(chosen) != 1:
        raise UserError("give one of --user ID, one or more --like TITLE, --all, or --users FILE")
    is_batch = everybody or users is not None
    if is_batch != (out is not None):
        raise UserError("--all and --users need --out FILE.parquet, and --user and --like print their films")
    if why and is_batch:
        raise UserError("--why explains one recommendation; give it with --user or --like")

    from tripletune.cli.recommend import recommend_to_all, recommend_to_stranger, recommend_to_user
    from tripletune.pipeline.answering import answering

    with answering(artifacts, run) as who:
        if out is not None:
            count = recommend_to_all(who, out, users=users, workers=workers)
            say(f"{out}: recommendations to {count:,} users")
        else:
            found = recommend_to_stranger(who, like, why=why) if like else recommend_to_user(who, user or 0, why=why)
            table = Table("", "film", "because")
            for place, film in enumerate(found, start=1):
                table.add_row(str(place), Text(film.title), Text(film.reason))
            console().print(table)
            if found[0].relied:
                _print_reliance(found[0].relied)
        say(who.sentence())


def _print_reliance(relied: Reliance) -> None:
    """The parts of the prompt that change the first answer's log-probability most."""
    from tripletune.schemas.rank import SERVED

    whose = "what is served" if relied.system == SERVED else "the language model, without the retriever's scores"
    console().print(Text(f"what {relied.title} relied on (first answer of {whose})"))
    table = Table("without", "log-probability falls by", "and the first answer becomes")
    control = replace(relied.control, part="nothing (the same prompt in another batch)")
    for part in (*relied.parts[:SHOWN_PARTS], control):
        table.add_row(Text(part.part), f"{part.change:+.3f}", Text(part.instead or "the same"))
    console().print(table)
    if (left := len(relied.parts) - SHOWN_PARTS) > 0:
        console().print(f"{left} more change it by {abs(relied.parts[SHOWN_PARTS].change):.3f} at most")


@app.command(rich_help_panel="Serve")
def rollback(
    why: Annotated[str, typer.Option("--why", help="Reason, for whoever reads the registry.")],
    to: Annotated[
        str, typer.Option("--to", help="Version to serve; empty: the newest before the champion not rolled back.")
    ] = "",
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="Hold later adapters to the version taken back, if it is the best one.")
    ] = False,
    run: RunOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Serve an earlier version again: move the champion alias of the MLflow registry back.

    The version that is taken back says when, by whom and why; it is no longer the best version, is not compared with as
    the champion of a week ago, and its adapter is not promoted again. The next promotion compares with the version that
    serves then.

    For example: [bold]tripletune rollback --why "recommends one film to everybody"[/].
    """
    from tripletune.promote.rollback import roll_back
    from tripletune.tracking import open_registry

    settings = read_run(artifacts, run).settings()
    done = roll_back(
        artifacts, settings, open_registry(settings.tracking, artifacts), why=why, to=to, keep_best=keep_best
    )
    say(f"champion of {done.model}: version {done.to.number}, no longer version {done.before.number}")
    say(f"best version: {done.best}; noted in {done.record}")
