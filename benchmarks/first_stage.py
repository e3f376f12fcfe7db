"""The default retriever against every list of its run, over several seeds; and what each part of it is worth.

    python benchmarks/first_stage.py --name 'ml-100k, likes' --rankings RETRIEVE_7 --rankings RETRIEVE_8 \\
        [--more RETRIEVE_7_SASREC ...] [--without 'no stars=RETRIEVE_7_NO_STARS' ...] [--page first_stage.md]

``--rankings`` are folders of retrieve stages, one a seed: of one release and preset, so that seeds differ in the unseen
users, ties, draws of the training and learned weights. ``--more`` are runs of the same seeds that have further lists,
such as SASRec's, on the same queries. ``--without`` are runs of the first seed with one part left out. The section of
that name in the page is replaced, the others stay.

All lists are asked the same test queries, with one mask and one order of ties, over the whole catalogue. ±: standard
deviation over seeds. Differences are paired: each user's mean over the seeds, 95 % bootstrap over users.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from retrieval_runs import difference, told
from sequence_baselines import scores, spread

PAGE = Path(__file__).with_suffix(".md")
METRICS = ("hr_at_10", "ndcg_at_10")
SHOWN = (*METRICS, "hr_at_20")
SEED = 0
"""Of the bootstrap."""
HEAD = "# The default retriever and its lists\n\nWhat is compared and how: the head of `first_stage.py`.\n"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def read_scores(folder: Path, number: int) -> pl.DataFrame:
    """Metrics of every list of a run on test: ``retriever, seed, user_id`` and the metrics."""
    columns = ["user_id", "purpose", "retriever", "answer", "top"]
    rankings = pl.read_parquet(folder / "rankings.parquet", columns=columns)
    return scores(rankings.filter(pl.col("purpose") == "test").with_columns(seed=pl.lit(number)))


def read_weights(folder: Path) -> str:
    """The learned weights of a run, such as ``slist .6, sequence .4``; empty where none were learned."""
    parents = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["parents"]
    if "fusion" not in parents:
        return ""
    path = folder.parents[1] / "fusion" / parents["fusion"] / "fusion.json"
    weights = json.loads(path.read_text(encoding="utf-8"))["weights"]
    return ", ".join(f"{name} {weight:g}" for name, weight in weights.items())


def section(
    name: str, rankings: list[Path], more: list[Path], without: dict[str, Path], hidden: list[str] | None = None
) -> list[str]:
    """The section of a release and protocol; lists in ``hidden`` have no row."""
    found = pl.concat(read_scores(folder, number) for number, folder in enumerate(rankings))
    for number, folder in enumerate(more):
        new = read_scores(folder, number)
        found = pl.concat([found, new.join(found, on=["retriever", "seed"], how="anti")])
    found = found.filter(~pl.col("retriever").is_in(hidden or []))
    counts = found.group_by("retriever", "seed").agg(pl.col("user_id").sort().hash().sum(), num=pl.len())
    if counts.select("seed", "num", "user_id").unique().height > len(rankings):
        raise SystemExit(f"{name}: the runs have lists of different queries")
    num_users = found["user_id"].n_unique()
    weights = "; ".join(filter(None, (read_weights(folder) for folder in rankings)))
    seeds = f"{len(rankings)} seed{'s' * (len(rankings) > 1)}"
    lines = [f"## {name}", "", f"{num_users:,} users, {seeds}. Learned weights, by seed: {weights}.", ""]
    lines += ["| list | hr_at_10 | ndcg_at_10 | hr_at_20 | fused minus it, hr_at_10 | ndcg_at_10 |"]
    lines += ["|---|--:|--:|--:|---|---|"]
    means = found.group_by("retriever", "seed").agg(pl.col(SHOWN).mean())
    order = means.group_by("retriever").agg(pl.col("ndcg_at_10").mean()).sort("ndcg_at_10", "retriever")["retriever"]
    fused = per_user(found, "fused")
    for retriever in order:
        values = [spread(means.filter(pl.col("retriever") == retriever)[metric]) for metric in SHOWN]
        gains = ["", ""]
        if retriever != "fused":
            gains = [told(difference(fused, per_user(found, retriever), metric, SEED)) for metric in METRICS]
        lines.append(f"| {' | '.join([retriever, *values, *gains])} |")
    if without:
        lines += ["", "Parts left out, first seed; the whole run minus each:", ""]
        lines += [
            "| left out | sequence: hr_at_10 | ndcg_at_10 | fused: hr_at_10 | ndcg_at_10 |",
            "|---|---|---|---|---|",
        ]
    whole = found.filter(pl.col("seed") == 0)
    for what, folder in without.items():
        part = read_scores(folder, 0)
        pairs = [(per_user(whole, retriever), per_user(part, retriever)) for retriever in ("sequence", "fused")]
        cells = [told(difference(*pair, metric, SEED)) for pair in pairs for metric in METRICS]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return [*lines, ""]


def per_user(found: pl.DataFrame, retriever: str) -> pl.DataFrame:
    """Each user's mean over the seeds."""
    mine = found.filter(pl.col("retriever") == retriever)
    return mine.group_by("user_id").agg(pl.col(METRICS).mean()).sort("user_id")


def put_section(page: str, lines: list[str]) -> str:
    """The page with this section in place of the one of the same heading, or at its end."""
    head, *sections = re.split(r"^(?=## )", (page.rstrip("\n") or HEAD.rstrip("\n")) + "\n\n", flags=re.MULTILINE)
    text = "\n".join(lines) + "\n"
    places = [place for place, one in enumerate(sections) if one.split("\n", 1)[0] == lines[0]]
    if places:
        sections[places[0]] = text
    else:
        sections.append(text)
    return "".join([head, *sections]).rstrip("\n") + "\n"


@app.command()
def compare(
    name: Annotated[str, typer.Option(help="Of the section: release and protocol.")],
    rankings: Annotated[list[Path], typer.Option(help="Folder of a retrieve stage; one a seed.")],
    more: Annotated[list[Path] | None, typer.Option(help="Runs of the same seeds with further lists.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="WHAT=FOLDER, a run of the first seed.")] = None,
    hide: Annotated[list[str] | None, typer.Option(help="A list of these runs that is not to be shown.")] = None,
    page: Annotated[Path, typer.Option(help="Its section is replaced.")] = PAGE,
) -> None:
    """Write one section of the page."""
    left_out = dict(one.split("=", 1) for one in without or [])
    lines = section(name, rankings, more or [], {what: Path(folder) for what, folder in left_out.items()}, hide)
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    page.write_text(put_section(old, lines), encoding="utf-8")
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    app()
