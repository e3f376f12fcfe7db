"""The Typer app and the parts its commands share: options, the settings and outputs they name, the console.

A command that works on a config and its input takes ``Inputs`` and is added by ``takes_inputs``, so that those options
stand here alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tripletune.config import RunConfig
from tripletune.config.presets import load_config
from tripletune.pipeline.resolve import resolve
from tripletune.store.paths import RunPaths
from tripletune.store.runs import list_runs

CHECKOUT = Path(__file__).parents[3]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Two graph specialists write hints about a user; a language model learns to use them.\n\n"
    "A whole run on the synthetic release: [bold]tripletune run[/]. On real data: [bold]tripletune download "
    "ml-latest-small[/], [bold]tripletune run --config configs/ml-latest-small.toml --imdb imdb/[/]. Then "
    "[bold]tripletune show[/], [bold]prompt --user 1[/], [bold]recommend --user 1[/]. What would a rerun do? "
    "[bold]tripletune plan[/].",
    rich_markup_mode="rich",
)

ConfigOption = Annotated[str, typer.Option("--config", help="A preset in TOML; the shipped ones are in configs/.")]
MovielensOption = Annotated[
    str, typer.Option("--movielens", help="MovieLens zip or folder, in place of the preset's; neither: synthetic.")
]
ImdbOption = Annotated[str, typer.Option("--imdb", help="Folder with IMDb's title.* and name.basics .tsv.gz.")]
ArtifactsOption = Annotated[
    Path, typer.Option("--artifacts", help="Folder of all outputs; a later command finds them there.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="A setting in place of the preset's; the value is TOML, a bare word is text; repeat it.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def runs_like(context: typer.Context, incomplete: str) -> list[str]:
    """Names of runs for a shell's completion, newest first."""
    root = Path(context.params.get("artifacts") or ARTIFACTS)
    return [record.name for record in reversed(list_runs(root)) if record.name.startswith(incomplete)]


RunOption = Annotated[
    str,
    typer.Option("--run", help="Name of a run; empty: the latest that has what is needed.", autocompletion=runs_like),
]
RunArgument = Annotated[str, typer.Argument(help="Name of a run; empty: the latest.", autocompletion=runs_like)]

CONFIG = "configs/smoke.toml"
ARTIFACTS = Path("artifacts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The options that name a run's settings, its data and where its outputs are."""

    config: str
    movielens: str
    imdb: str
    artifacts: Path
    set: Sequence[str] = ()
    """Settings in place of the preset's, each as ``section.key=value``."""

    def load(self) -> RunConfig:
        """The settings alone, for which no data need be there; raises ConfigError as ``resolve`` does."""
        return load_config(Path(self.config), self.set, movielens=self.movielens, imdb=self.imdb)

    def resolve(self) -> tuple[RunConfig, RunPaths]:
        """The settings, and the fingerprint of every stage.

        Raises:
            UserError: the preset or the data are wrong.
        """
        settings = self.load()
        return settings, resolve(settings, self.artifacts)


Command = Callable[[Inputs], None]


def takes_inputs(name: str, *, panel: str, help: str | None = None) -> Callable[[Command], Command]:
    """Decorate a function as a command whose options are those of ``Inputs``.

    Args:
        name: of the command.
        panel: of the help page that it stands in.
        help: its help text; None: the docstring.
    """

    def add(act: Command) -> Command:
        def command(
            config: ConfigOption = CONFIG,
            movielens: MovielensOption = "",
            imdb: ImdbOption = "",
            artifacts: ArtifactsOption = ARTIFACTS,
            set: SetOption = None,
        ) -> None:
            act(Inputs(config=config, movielens=movielens, imdb=imdb, artifacts=artifacts, set=set or ()))

        app.command(name, help=help or act.__doc__, rich_help_panel=panel)(command)
        return act

    return add


def console() -> Console:
    """Standard output; in a pipe, which has no width, wide enough for every table."""
    found = Console()
    return found if found.is_terminal else Console(width=160)


def say_json(value: object) -> None:
    """Print plain data as JSON: nothing else goes to standard output, so that a program can read it."""
    print(json.dumps(value, indent=2, default=str))


def say(line: str) -> None:
    """Print one line as it is."""
    console().print(line, markup=False, highlight=False, soft_wrap=True)
