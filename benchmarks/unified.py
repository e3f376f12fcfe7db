"""One table of baselines and ours: the same rows for training, held-out films, mask and ties, and what each cost.

    python benchmarks/unified.py --name 'ml-latest-small, likes' --rankings artifacts/DATASET/retrieve/FINGERPRINT \\
        --recbole-python RECBOLE/bin/python [--run ROOT:RUN ...]

``--rankings`` is the folder of a retrieve stage; its split and knowledge graph, pinned in the manifest, are exported
for RecBole's KGAT, CKE and BERT4Rec (``recbole_export.py``, ``recbole_graph.py``), which train in an environment of
their own (``recbole-requirements.txt``) on the rows of fit b. Their scores are ranked with our mask (all that the user
rated before the cutoff) and our order of ties, and measured by ``tripletune.evaluate``. A point of their grid is chosen
by valid ndcg_at_10. ``--more`` adds what ranks otherwise in another retrieve stage on the same split, ``--run`` the
language models of a finished run.

Seconds: of ours the wall time of the stages that a list needs, which fit twice (a and b), of language models the
training's and the ranking's; of RecBole's the CPU time of one training, with evaluation left out. They come from shared
machines and tell the order of magnitude. "Cut short": ended by the cap on CPU time or by hand, not by early stopping.
Parameters: what fit b stores; of language models what LoRA trains.

Models with a table of users cannot rank for unseen ones, and runs may rank for some users alone: every table is of the
users that all its rows ranked for. Trainings are kept in the work folder and found again. The section of ``--name`` in
the page is replaced, the others stay.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from first_stage import put_section
from recbole_export import training_likes, windows, write_job
from recbole_graph import write_graph
from retrieval_runs import CONFIDENCE, METRICS, RECBOLE_SIDE, RESAMPLES, Trained, console, machine, run_side
from sequence_baselines import Run, read_run
from unified_rows import Row, row_of_recbole, rows_of_language_models, rows_of_ours

from tripletune.compare.paired import detectable_difference, sign_flip_p_values
from tripletune.evaluate.significance import bootstrap_means, holm, summarise
from tripletune.models.training.interactions import read_interactions

PAGE = Path(__file__).with_suffix(".md")
REFERENCE = "fused"
COMPARED = ("hr_at_10", "ndcg_at_10")
POWER = 0.8
SEED = 0
"""Of the draws."""
_KNOWLEDGE = {"learning_rate": 0.005, "train_batch_size": 4096, "kg_embedding_size": 16}
_BERT4REC = {"train_batch_size": 64, "eval_step": 5}
GRID: dict[str, list[dict[str, Any]]] = {
    "KGAT": [_KNOWLEDGE, _KNOWLEDGE | {"layers": [64, 32, 16], "kg_reverse_r": True}],
    "CKE": [_KNOWLEDGE, _KNOWLEDGE | {"reg_weights": [1e-4, 1e-4]}],
    "BERT4Rec": [_BERT4REC | {"learning_rate": 0.003}, _BERT4REC | {"learning_rate": 0.001}],
}
"""Points of each model; settings that are not named are RecBole's."""
JOBS = {"KGAT": "likes", "CKE": "likes", "BERT4Rec": "sequences"}
DEPARTURES = {
    "KGAT": "Not pre-trained by matrix factorisation; relations 16 wide, not 64; reads the training rows alone, not "
    "the like of valid, when test is asked.",
    "CKE": "Structural knowledge alone, without texts and pictures of films; relations 16 wide; reads the training "
    "rows alone, not the like of valid, when test is asked.",
    "BERT4Rec": "50 likes, not 200; each like stands in one training row, masked anew in every epoch.",
}
OUR_DEPARTURES = {
    "EASE, recency-weighted history": "A user's history is weighted by age.",
    "SLIST": "Made for sessions; here a user's likes, one matrix with EASE's, scores divided by a power of popularity.",
    "R-GAT": "Ours, to choose facts, not to rank.",
    "LightGCN": "A softmax over films with recent likes weighing more, not BPR; no table of users.",
    "sequence model": "Ours: reads all ratings, stars and times.",
    "fused": "Ours: the lists above by learned weights (SLIST and the sequence model).",
    "R-GAT of kerag-r": "KERAG_R's: link prediction alone, the sign of the loss repaired.",
    "LightGCN of kerag-r": "BPR, as published; a user's vector is made of the liked films', without a table of users.",
}
HEAD = "# Baselines and ours in one table\n\nWhat is compared and how: the head of `unified.py`.\n"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def export(run: Run) -> dict[str, dict[str, int]]:
    """Write RecBole's files, unless the work folder has them; by job, counts of what they hold."""
    told = run.folder / "export.json"
    if not told.exists():
        for name, sequences in (("likes", False), ("sequences", True)):
            (run.folder / f"job-{name}").mkdir(parents=True, exist_ok=True)
            write_job(run.split, run.folder / f"job-{name}", run.seed, sequences=sequences)
        manifest = json.loads((run.rankings / "manifest.json").read_text(encoding="utf-8"))
        knowledge = run.rankings.parents[1] / "knowledge" / manifest["parents"]["knowledge"]
        likes = training_likes(read_interactions(run.split))
        graph = write_graph(knowledge, run.folder / "job-likes" / "likes")
        counts = {"likes": graph | {"rows": len(likes)}, "sequences": {"rows": len(windows(likes))}}
        told.write_text(json.dumps(counts) + "\n", encoding="utf-8")
    return dict(json.loads(told.read_text(encoding="utf-8")))


def asked(models: str, points: int) -> dict[str, int]:
    """Points of the grid to train, by model: ``KGAT,BERT4Rec:1`` trains one of BERT4Rec and ``points`` of KGAT.

    Raises:
        SystemExit: a model or a number of points that the grid does not have.
    """
    found = {}
    for one in (one for one in models.split(",") if one):
        model, _, number = one.partition(":")
        if model not in GRID or number not in ("", *map(str, range(1, len(GRID[model]) + 1))):
            known = ", ".join(f"{name}:{len(grid)}" for name, grid in GRID.items())
            raise SystemExit(f"--models: {one!r} is not in the grid; give models, and points at most, of {known}")
        found[model] = int(number or points)
    return found


def train(run: Run, model: str, points: int, python: Path, cap_minutes: float) -> list[Trained]:
    """Train the first points of a model's grid, those that the work folder lacks."""
    job = run.folder / f"job-{JOBS[model]}"
    return [
        run_side(python, RECBOLE_SIDE, job, run.folder / f"{model}-{number}", model, settings, cap_minutes, run.seed)
        for number, settings in enumerate(GRID[model][:points], start=1)
    ]


def further_rows(rows: list[Row], other: Run, run: Run) -> list[Row]:
    """Lists of another retrieve stage that rank otherwise than those of ``rows``, with its preset's name.

    Raises:
        SystemExit: it is on another split.
    """
    if other.split.name != run.split.name:
        raise SystemExit(f"{other.rankings} is on another split than {run.rankings}; give both one release and [split]")
    new = [row for row in rows_of_ours(other) if not any(row.test.equals(known.test) for known in rows)]
    dataset = other.rankings.parents[1].name
    return [replace(row, name=f"{row.name} of {dataset}") for row in new]


def shared_users(rows: list[Row]) -> pl.DataFrame:
    """``user_id`` of those for whom every row ranked, sorted."""
    users = rows[0].test.select("user_id")
    for row in rows[1:]:
        users = users.join(row.test, on="user_id", how="semi")
    if users.is_empty():
        raise SystemExit("no user was ranked for by all rows")
    return users.sort("user_id")


def values_of(row: Row, users: pl.DataFrame) -> np.ndarray:
    """Metrics (U, V) in the order of the users."""
    return (
        users.join(row.test, on="user_id", how="left", maintain_order="left", validate="1:1").select(METRICS).to_numpy()
    )


def accuracy_and_cost(rows: list[Row], users: pl.DataFrame) -> list[str]:
    """A line for each row, best last by ndcg_at_10, with 95 % bootstrap intervals over users."""
    lines = [f"| | valid ndcg_at_10 | {' | '.join(METRICS)} | seconds | parameters | tokens |", "|---|" + "--:|" * 8]
    found = [(row, values_of(row, users)) for row in rows]
    for row, values_UV in sorted(found, key=lambda one: float(one[1][:, -1].mean())):
        means_RV = bootstrap_means(values_UV, resamples=RESAMPLES, seed=SEED)
        cells = []
        for v in range(len(METRICS)):
            one = summarise(values_UV[:, v], means_RV[:, v], confidence=CONFIDENCE)
            cells.append(f"{one.value:.4f} ({one.low:.3f} to {one.high:.3f})")
        valid = users.join(row.valid, on="user_id")["ndcg_at_10"].to_numpy()
        parameters = f"{row.cost.parameters:,}" if row.cost.parameters else ""
        lines.append(
            " | ".join(
                [f"| {row.name}", f"{valid.mean():.4f}", *cells, row.cost.seconds, parameters, row.cost.tokens, ""]
            )[:-1]
        )
    return lines


def differences(rows: list[Row], users: pl.DataFrame) -> list[str]:
    """The reference minus each other row, on the same users, with p-values of one family."""
    first = next(row for row in rows if row.name == REFERENCE)
    columns = [METRICS.index(metric) for metric in COMPARED]
    others = [row for row in rows if row is not first]
    tests = []
    for row in others:
        gains_UV = (values_of(first, users) - values_of(row, users))[:, columns]
        means_RV = bootstrap_means(gains_UV, resamples=RESAMPLES, seed=SEED)
        p_V = sign_flip_p_values(gains_UV, resamples=RESAMPLES, seed=SEED)
        for v, metric in enumerate(COMPARED):
            one = summarise(gains_UV[:, v], means_RV[:, v], confidence=CONFIDENCE)
            least = detectable_difference(gains_UV[:, v], confidence=CONFIDENCE, power=POWER)
            tests.append((row.name, metric, one, float(p_V[v]), least))
    adjusted = holm(np.array([test[3] for test in tests]))
    lines = [f"| {REFERENCE} minus | | difference | p | by Holm | detectable |", "|---|---|---|--:|--:|--:|"]
    for (name, metric, one, p, least), p_adjusted in zip(tests, adjusted, strict=True):
        interval = f"{one.value:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
        told = "-" if least is None else f"{least:.4f}"
        lines.append(f"| {name} | {metric} | {interval} | {p:.4f} | {p_adjusted:.4f} | {told} |")
    return lines


def section(name: str, run: Run, rows: list[Row]) -> list[str]:
    """The tables of one release."""
    retrievers = [row for row in rows if not row.is_language_model]
    users = shared_users(retrievers)
    lines = [f"## {name}", "", machine(), ""]
    lines += [f"First stages over the whole catalogue, seed {run.seed}: {len(users):,} users that all ranked for.", ""]
    lines += [*accuracy_and_cost(retrievers, users), "", *differences(retrievers, users), ""]
    models = [row for row in rows if row.is_language_model]
    if models:
        # of the retrievers the users whom the language models ranked for, so that the rows are of the same people
        both = [row for row in rows if row.is_language_model or row.name in (REFERENCE, "popularity", "SLIST")]
        users = shared_users(both)
        lines += [f"Language models re-rank the retriever's candidates: {len(users):,} users that all ranked for.", ""]
        lines += [*accuracy_and_cost(both, users), "", *differences(both, users), ""]
    lines += ["| row | command | departs from its paper; settings |", "|---|---|---|"]
    lines += [f"| {row.name} | `{row.command}` | {row.note or OUR_DEPARTURES.get(row.name, '')} |" for row in rows]
    return [*lines, ""]


@app.command()
def compare(
    name: Annotated[str, typer.Option(help="Of the section: release and protocol.")],
    rankings: Annotated[Path, typer.Option(help="Folder of a retrieve stage.")],
    recbole_python: Annotated[Path, typer.Option(help="Python of the environment that has RecBole.")] = Path("python"),
    models: Annotated[
        str, typer.Option(help="Of RecBole's, with commas, MODEL:N for N points; empty: none.")
    ] = ",".join(GRID),
    points: Annotated[int, typer.Option(help="Points of each grid to train.", min=1, max=2)] = 2,
    more: Annotated[list[Path] | None, typer.Option(help="Further retrieve stages, on the same split.")] = None,
    release: Annotated[str, typer.Option(help="Of the commands: MOVIELENS=FOLDER, where a preset names another.")] = "",
    run: Annotated[list[str] | None, typer.Option(help="ROOT:RUN, a finished run on the same split.")] = None,
    work: Annotated[Path, typer.Option(help="Trainings are kept and found again here.")] = Path("artifacts/unified"),
    cap_minutes: Annotated[float, typer.Option(help="CPU minutes for each training of RecBole's.")] = 15.0,
    page: Annotated[Path, typer.Option(help="Its section is replaced.")] = PAGE,
) -> None:
    """Train what is missing in the work folder and write one section of the page."""
    found = read_run(rankings.resolve(), work / name)
    rows = rows_of_ours(found)
    for folder in more or []:
        rows += further_rows(rows, read_run(folder.resolve(), work / name), found)
    rows = [replace(row, command=f"{row.command} {release}".strip()) for row in rows]
    counts = export(found) if models else {}
    for model, number in asked(models, points).items():
        told = f"--models {model} --points {number} --cap-minutes {cap_minutes:g}"
        command = f"python benchmarks/unified.py --name {shlex.quote(name)} --rankings FOLDER {told}"
        trained = train(found, model, number, recbole_python, cap_minutes)
        expected = counts[JOBS[model]]
        rows.append(row_of_recbole(found, f"RecBole {model}", trained, expected, command, DEPARTURES[model]))
    for one in run or []:
        root, _, run_name = one.rpartition(":")
        new = rows_of_language_models(found, Path(root or "artifacts"), run_name)
        rows += [row for row in new if not any(row.test.equals(known.test) for known in rows)]
    lines = section(name, found, rows)
    page.write_text(put_section(page.read_text(encoding="utf-8") if page.exists() else HEAD, lines), encoding="utf-8")
    console.print("\n".join(lines), markup=False)


if __name__ == "__main__":
    app()
