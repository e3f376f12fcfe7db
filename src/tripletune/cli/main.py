"""``tripletune``: the whole run, any single stage, and questions about what a run made.

``run`` starts the Prefect flow; every other command works without Prefect. Expected mistakes end in one line on
stderr and exit code 2; anything else keeps its traceback.
"""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from tripletune import __version__
from tripletune.config import RunConfig
from tripletune.config.presets import load_config
from tripletune.errors import UserError
from tripletune.pipeline import stages
from tripletune.pipeline.resolve import resolve
from tripletune.processes.guardian import guard_this_process
from tripletune.store.paths import MANIFEST, RunPaths, make_folder, write_atomically
from tripletune.store.runs import RunRecord, list_runs, read_run, update_run

CHECKOUT = Path(__file__).parents[3]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Two graph specialists write hints about a viewer; a language model learns to use them.\n\n"
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
ArtifactsOption = Annotated[Path, typer.Option("--artifacts", help="Where outputs are kept and found again.")]
RunOption = Annotated[str, typer.Option("--run", help="Name of a run; empty: the latest that has what is needed.")]

CONFIG = "configs/smoke.toml"
SYNTHETIC = "configs/synthetic.toml"
"""Preset of a dataset of its own, so that made-up and real outputs and champions do not meet."""
ARTIFACTS = Path("artifacts")
STAGES = (
    *("ingest", "split", "knowledge", "rgat", "lightgcn", "sasrec", "ease"),
    *("retrieve", "generate", "finetune", "rank", "evaluate"),
)


def _console() -> Console:
    # a pipe has no width; 80 columns would break every table
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _resolve(config: str, movielens: str, imdb: str, artifacts: Path) -> tuple[RunConfig, RunPaths]:
    settings = load_config(Path(config), movielens=movielens, imdb=imdb)
    return settings, resolve(settings, artifacts)


@app.command(rich_help_panel="Data")
def download(
    name: Annotated[str, typer.Argument(help="ml-32m, ml-25m, ml-20m, ml-latest, ml-latest-small, ml-1m or ml-100k.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the zip.")] = Path("downloads"),
    base_url: Annotated[str, typer.Option("--base-url", help="A mirror's folder; empty: GroupLens.")] = "",
    md5: Annotated[str, typer.Option("--md5", help="The zip's MD5, where none is published beside it.")] = "",
) -> None:
    """Fetch a MovieLens release, or go on with what an earlier attempt left; only a zip with the right MD5 stays."""
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
    _console().print(f"{found.path}: {state}, MD5 {found.md5}", markup=False, highlight=False, soft_wrap=True)


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
    """Write a made-up release of a real one's size, with IMDb's dumps beside it.

    It has the real release's totals, always in the csv layout (ml-1m too): ratings.csv movies.csv tags.csv links.csv,
    and imdb/ with title.basics title.crew title.principals name.basics. Each viewer prefers a director, a
    cinematographer, a writer, an actor, a genre, a decade or nothing: truth.parquet says which, so that you can ask
    whether a later stage found it. The other truth_* files hold the generator itself;
    benchmarks.synthetic_oracle reads from them how likely each preference is, given any history.

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
    _console().print(f"{out}: {counts}, seed {seed}; to use it:", markup=False, highlight=False, soft_wrap=True)
    command = ["tripletune", "run", "--config", SYNTHETIC, "--movielens", str(out), "--imdb", str(out / "imdb")]
    _console().print(shlex.join(command), markup=False, highlight=False, soft_wrap=True)


@app.command(rich_help_panel="Run")
def run(
    config: ConfigOption = CONFIG,
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """The nightly flow: every stage whose output is not there yet, under Prefect, logged to MLflow."""
    settings, _ = _resolve(config, movielens, imdb, artifacts)  # a mistake shows before Prefect starts
    stages.require_one_answer(settings)
    if not (CHECKOUT / "flows").is_dir():
        raise UserError(f"no flows/ in {CHECKOUT}; `tripletune run` needs the checkout, single stages do not")
    make_folder(artifacts, "--artifacts")
    sys.path.insert(0, str(CHECKOUT))
    nightly = importlib.import_module("flows.nightly").nightly
    _log_mistakes_in_one_line()
    guard_this_process()
    record = read_run(artifacts, nightly(config=config, movielens=movielens, imdb=imdb, artifacts=str(artifacts)))
    _print_summary(record, artifacts)


def _log_mistakes_in_one_line() -> None:
    def without_traceback(line: logging.LogRecord) -> bool:
        if line.exc_info and isinstance(line.exc_info[1], UserError):
            line.exc_info = None
        return True

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(without_traceback)


def _print_summary(record: RunRecord, artifacts: Path) -> None:
    from tripletune.cli.inspect import metrics_tables, where_things_are

    console = _console()
    console.print(metrics_tables(record.paths(artifacts).folder("evaluate"), record.settings().evaluate))
    console.print(where_things_are(record, artifacts, record.settings()), soft_wrap=True)


@app.command(rich_help_panel="Run")
def plan(
    config: ConfigOption = CONFIG,
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """What a run would make again, and which input, setting, source or library changed."""
    from tripletune.cli.inspect import plan_table

    _, paths = _resolve(config, movielens, imdb, artifacts)
    _console().print(plan_table(paths))


@app.command(rich_help_panel="Look")
def show(
    run: Annotated[str, typer.Argument(help="Name of a run; empty: the latest.")] = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Lineage, facts and metrics of a run, from the ratings file to the adapter."""
    from tripletune.cli.inspect import show_run

    _console().print(show_run(read_run(artifacts, run), artifacts))


@app.command(rich_help_panel="Look")
def audit(
    run: RunOption = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="A CSV file for all leaks; the screen shows the first of each kind.")
    ] = None,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Prove on the written shards that nothing leaked; exit code 1 and the example ids if something did."""
    from tripletune.audit.audit import audit_shards, stated_style
    from tripletune.audit.leaks import MAX_PER_KIND, format_leaks, write_leaks
    from tripletune.prompts.template import load_template

    record = read_run(artifacts, run or _latest_published(artifacts, "generate"), needs="generate")
    paths = record.paths(artifacts)
    shards, split, retrieve = (_published(paths, stage) for stage in ("generate", "split", "retrieve"))
    trained = {stage: _published(paths, stage) for stage in record.settings().trained_stages}
    # shards of versions that stated no style were made with a shipped template, which still has it
    style = stated_style(shards) or load_template(record.settings().prompt.template).answers
    leaks = audit_shards(shards, split, retrieve, trained, style=style, limit=None if out else MAX_PER_KIND)
    if out:
        make_folder(out.parent, "--out")
        write_leaks(out, leaks)
    _console().print(f"{record.name}: {format_leaks(leaks)}", markup=False, soft_wrap=True)
    if leaks:
        raise typer.Exit(1)


def _latest_published(artifacts: Path, stage: str) -> str:
    """The newest run whose output was published, whole or not: what is damaged is for the audit to name."""
    for record in reversed(list_runs(artifacts)):
        if stage in record.fingerprints and (record.paths(artifacts).folder(stage) / MANIFEST).is_file():
            return record.name
    return ""


def _published(paths: RunPaths, stage: str) -> Path:
    return paths.folder(stage) if (paths.folder(stage) / MANIFEST).is_file() else paths.require(stage)


@app.command(rich_help_panel="Run")
def freeze(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")],
    viewers: Annotated[int, typer.Option("--viewers", min=0, help="So many of those asked for test; 0: all.")] = 0,
    run: RunOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Keep a run's valid and test questions in a file, so that later nights are asked the same ones.

    Set split.frozen to the file: metrics are then of these viewers alone, with the same cutoffs and answers, and what
    they rate later trains nothing.
    """
    from tripletune.data.split.frozen import freeze_questions

    record = read_run(artifacts, run, needs="split")
    frozen = freeze_questions(record.paths(artifacts).require("split"), viewers, record.settings().seed)
    make_folder(out.parent, "--out")
    write_atomically(out, frozen.write_parquet)
    counts = f"{len(frozen):,} questions of {frozen['user_id'].n_unique():,} viewers"
    _console().print(f"{out}: {counts} of {record.name}", markup=False, highlight=False, soft_wrap=True)


@app.command(rich_help_panel="Run")
def gc(
    keep: Annotated[int, typer.Option("--keep", min=1, help="Newest runs of each dataset whose outputs stay.")] = 14,
    keep_run: Annotated[list[str] | None, typer.Option("--keep-run", help="A further run to keep; repeat it.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove; without it nothing is touched.")] = False,
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Say which outputs no kept run refers to, and with --delete remove them.

    Kept are the newest runs of each dataset, runs named with --keep-run, runs that are going on, and runs whose
    specialists a kept one pins. Run files, promotion decisions and MLflow's store are never touched.
    """
    from tripletune.cli.inspect import garbage_table
    from tripletune.pipeline.garbage import find_garbage, kept_runs, remove

    kept = kept_runs(artifacts, newest=keep, named=keep_run or [])
    garbage = find_garbage(artifacts, kept)
    console = _console()
    console.print(garbage_table(garbage, kept))
    if not garbage:
        return
    if not delete:
        console.print("nothing was removed; add --delete")
        return
    removed, held = remove(garbage)
    console.print(f"removed {len(removed)} outputs, {sum(one.num_bytes for one in removed) / 2**20:,.1f} MiB")
    for one in held:
        console.print(f"left {one.folder}: a run holds it", markup=False, soft_wrap=True)


def _add_stage(name: str) -> None:
    function = getattr(stages, f"run_{name}")

    def command(
        config: ConfigOption = CONFIG,
        movielens: MovielensOption = "",
        imdb: ImdbOption = "",
        artifacts: ArtifactsOption = ARTIFACTS,
    ) -> None:
        from tripletune.cli.inspect import headline

        settings, paths = _resolve(config, movielens, imdb, artifacts)
        folder = function(paths, settings)
        _console().print(headline(name, paths.manifest(name)["facts"]), markup=False, highlight=False, soft_wrap=True)
        _console().print(str(folder), markup=False, highlight=False, soft_wrap=True)

    app.command(name, help=function.__doc__, rich_help_panel="One stage, without Prefect")(command)


for _stage in STAGES:
    _add_stage(_stage)


@app.command(rich_help_panel="One stage, without Prefect")
def quality(
    config: ConfigOption = CONFIG,
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Measure the shards, compare them with the last night's, and stop where they moved too far."""
    from tripletune.tracking import recorded_run, stage_run

    settings, paths = _resolve(config, movielens, imdb, artifacts)
    paths.require("generate")
    with recorded_run(settings, paths, {}) as (name, tracker), stage_run(tracker, "quality", {"run": name}) as child:
        folder = stages.run_quality(paths, settings, run=name, child=child)
    update_run(artifacts, name, stage=("quality", "made"))
    _console().print(str(folder / "quality.html"), markup=False, highlight=False, soft_wrap=True)


@app.command(rich_help_panel="One stage, without Prefect")
def promote(
    config: ConfigOption = CONFIG,
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Move the champion alias in the MLflow registry to this adapter, or say why not."""
    from tripletune.tracking import recorded_run, stage_run

    settings, paths = _resolve(config, movielens, imdb, artifacts)
    for stage in ("generate", "finetune", "evaluate"):
        paths.require(stage)
    with recorded_run(settings, paths, {}) as (name, tracker), stage_run(tracker, "promote", {"run": name}) as child:
        folder = stages.run_promote(paths, settings, run=name, child=child)
    update_run(artifacts, name, stage=("promote", "made"))
    _console().print((folder / "decision.json").read_text(encoding="utf-8"), markup=False)


@app.command(rich_help_panel="Look")
def prompt(
    user: Annotated[int, typer.Option("--user", help="A user id of the release.")],
    purpose: Annotated[str, typer.Option("--purpose", help="train, valid or test.")] = "test",
    cutoff: Annotated[int | None, typer.Option("--cutoff", help="Of several, the example asked there.")] = None,
    run: RunOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """A viewer's prompt as it stands in the shards, each line with where it comes from."""
    from tripletune.cli.recommend import explain_prompt

    if purpose not in ("train", "valid", "test"):
        raise UserError(f"--purpose {purpose!r}: there are train, valid and test")
    record = read_run(artifacts, run, needs="generate")
    table = Table("line", "comes from", box=None, pad_edge=False)
    for line, origin in explain_prompt(record.paths(artifacts), record.settings(), user, purpose, cutoff):
        table.add_row(Text(line), Text(origin, style="dim"))
    _console().print(table)


@app.command(rich_help_panel="Look")
def recommend(
    user: Annotated[int | None, typer.Option("--user", help="A user id of the release.")] = None,
    like: Annotated[list[str] | None, typer.Option("--like", help="A title, oldest first; repeat it.")] = None,
    run: RunOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
) -> None:
    """Top five for --user ID, or for anybody who likes --like "Heat (1995)" --like ...; each with its reason."""
    from tripletune.cli.recommend import recommend_to_stranger, recommend_to_user

    if (user is None) == (not like):
        raise UserError("give either --user ID or one or more --like TITLE")
    record = read_run(artifacts, run, needs="finetune")
    paths, settings = record.paths(artifacts), record.settings()
    found = recommend_to_stranger(paths, settings, like) if like else recommend_to_user(paths, settings, user or 0)
    table = Table("", "film", "because")
    for place, film in enumerate(found, start=1):
        table.add_row(str(place), Text(film.title), Text(film.reason))
    _console().print(table)


@app.command()
def version() -> None:
    """Print the version."""
    _console().print(__version__)


def _log_own_lines() -> None:
    """Show our own log, and leave the root logger alone: Prefect brings its own, libraries stay at warnings."""
    ours = logging.getLogger("tripletune")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _log_own_lines()
    try:
        code = app(args=list(argv) if argv is not None else None, standalone_mode=False)
    except UserError as error:
        print(f"tripletune: {error}", file=sys.stderr)
        return 2
    except typer.Abort:
        return 130
    except Exception as error:
        # click's own errors know how to show themselves: usage, then one line, exit code 2
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        raise
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    raise SystemExit(main())
