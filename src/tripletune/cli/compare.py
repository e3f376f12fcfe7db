"""The command that puts runs next to each other: ``compare``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from tripletune.cli.app import ARTIFACTS, ArtifactsOption, JsonOption, app, console, runs_like, say, say_json

if TYPE_CHECKING:
    from tripletune.compare.compare import Comparison

STYLES = {"better": "green", "worse": "red"}


@app.command(rich_help_panel="Look")
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Two runs or more by name; ROOT:NAME for one of another root.", autocompletion=runs_like),
    ],
    baseline: Annotated[
        str, typer.Option("--baseline", help="Run that the others are compared with; empty: the first.")
    ] = "",
    row: Annotated[
        str, typer.Option("--row", help="Row of the runs' tables; empty: what a run serves, tuned+retriever or tuned.")
    ] = "",
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="A metric of the family; repeat it. None: all.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for comparison.json, comparison.md and comparison.html.")
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", min=0.5, max=0.999, help="Of intervals and verdicts.")
    ] = 0.95,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, max=1_000_000, help="Of the bootstrap and the randomisation test.")
    ] = 10_000,
    as_json: JsonOption = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Is one run better than another? Paired differences on the users and questions that all of them share.

    Each metric has its difference to the baseline with a bootstrap interval, the p-value of a paired randomisation
    test, Holm-Bonferroni's correction over all tests, Wilcoxon's p-value, and the difference that so many users could
    show. What differs between the runs is listed: settings, inputs, stages. Runs that share no questions are refused.

    For example: [bold]tripletune compare RUN1 RUN2 --out compared[/].
    """
    from tripletune.compare.compare import compare_runs
    from tripletune.compare.pages import write_comparison
    from tripletune.compare.runs import read_scores

    read = [read_scores(name, artifacts, row) for name in runs]
    found = compare_runs(read, baseline, metrics=metric or (), confidence=confidence, resamples=resamples)
    written = write_comparison(out, found) if out else []
    if as_json:
        say_json(asdict(found))
        return
    _print(found)
    for path in written:
        say(f"written: {path}")


def _print(found: Comparison) -> None:
    """Tables of the differences and of what differs, the verdict at the end, where a terminal stands."""
    from tripletune.compare.pages import COLUMNS, about, by_run, cells, differing, verdict

    for name, lines in by_run(found):
        table = Table(*COLUMNS, title=Text(f"{name} against {found.baseline}"), title_justify="left")
        for line in lines:
            table.add_row(*map(Text, cells(line)), style=STYLES.get(line.verdict))
        console().print(table)
    names = [run["name"] for run in found.runs]
    for title, rows in differing(found):
        if rows:
            heads = ["", *names, *(["because"] if title == "Stages" else [])]
            differences = Table(*heads, title=f"{title.lower()} that differ", title_justify="left")
            for cells_of_row in rows:
                differences.add_row(*map(Text, cells_of_row))
            console().print(differences)
        else:
            say(f"{title.lower()} that differ: none")
    for sentence in (*about(found), *verdict(found)):
        say(sentence)
