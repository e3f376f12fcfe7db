"""Commands that get data: ``download`` a release, or ``synth`` a synthetic one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tripletune.cli.app import app, say
from tripletune.errors import UserError

SYNTHETIC = "configs/synthetic.toml"
"""Preset with a dataset name of its own, so that outputs and champions of synthetic and real data stay apart."""


@app.command(rich_help_panel="Data")
def download(
    name: Annotated[str, typer.Argument(help="ml-32m, ml-25m, ml-20m, ml-latest, ml-latest-small, ml-1m or ml-100k.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the zip.")] = Path("downloads"),
    base_url: Annotated[str, typer.Option("--base-url", help="A mirror's folder; empty: GroupLens.")] = "",
    md5: Annotated[str, typer.Option("--md5", help="The zip's MD5, where none is published with it.")] = "",
) -> None:
    """Fetch a MovieLens release, or resume an earlier download of it; only a zip with the right MD5 is kept."""
    from tripletune.data.download.fetch import BASE_URL
    from tripletune.data.download.fetch import download as fetch

    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=None)
        found = fetch(
            name,
            to,
            base_url=base_url or BASE_URL,
            md5=md5,
            report=lambda done, total: progress.update(bar, completed=done, total=total or None),
        )
    state = "fetched" if found.fetched else "already there"
    say(f"{found.path}: {state}, MD5 {found.md5}")


@app.command(rich_help_panel="Data")
def synth(
    size: Annotated[str, typer.Option("--size", help="ml-32m, ml-25m, ml-1m or small (as ml-latest-small).")],
    out: Annotated[Path, typer.Option("--out", help="A new folder; appears when everything in it is written.")],
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Same size and seed, same bytes.")] = 0,
    principals: Annotated[
        int,
        typer.Option(
            "--principals",
            min=-1,
            help="Credits in IMDb's dumps, at least: other titles' fill them up, the films' own are always written; "
            "-1: by size.",
        ),
    ] = -1,
) -> None:
    """Write a synthetic release of a real one's size, with IMDb's dumps in a subfolder.

    It has the real release's totals, always in the csv layout (ml-1m too): ratings.csv movies.csv tags.csv links.csv,
    and imdb/ with title.basics title.crew title.principals name.basics. Each user prefers a director, a
    cinematographer, a writer, an actor, a genre, a decade or nothing: truth.parquet holds the preference, so that you
    can check whether a later stage found it. The other truth_* files hold the generator itself;
    benchmarks.synthetic_oracle computes from them how likely each preference is, given any history.

    For example: [bold]tripletune synth --size small --out made[/], then [bold]tripletune run --config
    configs/synthetic.toml --movielens made --imdb made/imdb[/]. ml-32m takes about a minute and 1.3 GB of disk.
    """
    from tripletune.synthetic.release import synthesise
    from tripletune.synthetic.sizes import SIZES

    if size not in SIZES:
        raise UserError(f"--size {size!r}: there are {', '.join(SIZES)}")
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        asked = SIZES[size].principals if principals < 0 else principals
        bars = {
            "ratings": progress.add_task("ratings", total=SIZES[size].ratings),
            "credits": progress.add_task("credits", total=asked or None),
        }
        facts = synthesise(
            out,
            size,
            seed,
            principals=asked,
            advance=lambda table, rows: progress.advance(bars[table], rows),
        )
    counts = ", ".join(f"{facts[f'synthetic_{name}']:,} {name}" for name in ("ratings", "viewers", "movies", "tags"))
    counts += f", {facts['synthetic_dumps']['title.principals']:,} credits"
    say(f"{out}: {counts}, seed {seed}; to use it:")
    command = ["tripletune", "run", "--config", SYNTHETIC, "--movielens", str(out), "--imdb", str(out / "imdb")]
    say(shlex.join(command))
