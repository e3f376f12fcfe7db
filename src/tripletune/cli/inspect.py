"""Rich tables for ``plan``, ``show`` and the end of a run, made from manifests and metrics."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tripletune.config import EvaluateConfig, RunConfig
from tripletune.evaluate.metrics import metric_names
from tripletune.evaluate.tables import ranked_systems, retrieval_rows
from tripletune.pipeline.garbage import Removable
from tripletune.pipeline.registry import STAGES
from tripletune.pipeline.stage_lines import fact_text, reasons_to_make
from tripletune.promote.pages import NUMBERS, decision_rows
from tripletune.promote.pages import headline as headline_of
from tripletune.quality import PAGE
from tripletune.store.champion import read_decision
from tripletune.store.paths import RunPaths, read_manifest
from tripletune.store.read import read_parquet
from tripletune.store.runs import RunRecord, quality_folder, run_page, tracking_uri


def plan_table(paths: RunPaths, overrides: Sequence[str] = ()) -> Table:
    """Table of the stages a run would reuse or make, and what changed since the latest output of each; its title has
    the settings given in place of the preset's."""
    title = Text(" ".join([f"plan for {paths.dataset}", *(f"--set {given}" for given in overrides)]))
    table = Table("stage", "what", "fingerprint", "because", title=title, title_justify="left")
    for one in planned_stages(paths):
        what = Text(one.what, style="yellow" if one.what == "make" else "green")
        table.add_row(one.stage, what, one.fingerprint[:10], Text("\n".join(one.because)))
    return table


class Planned(NamedTuple):
    """What a run would do with a stage."""

    stage: str
    what: Literal["make", "reuse", "fetch"]
    fingerprint: str
    """Empty for stages that are never reused."""
    because: list[str]


def planned_stages(paths: RunPaths) -> list[Planned]:
    """What a run would do, and why; the shared store is asked where there is one, and nothing is fetched."""
    found = []
    for stage in STAGES:
        if stage.never_reused:
            found.append(Planned(stage.name, "make", "", [f"never reused: {stage.never_reused}"]))
        elif stage.name in paths.fingerprints:
            fingerprint = paths.fingerprints[stage.name]
            if paths.is_here(stage.name):
                found.append(Planned(stage.name, "reuse", fingerprint, []))
            elif paths.is_shared(stage.name):
                found.append(Planned(stage.name, "fetch", fingerprint, [f"finished in {paths.shared}"]))
            else:
                found.append(Planned(stage.name, "make", fingerprint, reasons_to_make(paths, stage.name)))
    return found


def garbage_table(garbage: Sequence[Removable], kept: Sequence[RunRecord]) -> Table:
    """Table of the outputs that ``gc`` would remove, by dataset and stage; its title lists the kept runs."""
    names = ", ".join(run.name for run in kept) or "none"
    table = Table("dataset", "stage", "outputs", "MiB", title=f"kept runs: {names}", title_justify="left")
    for (dataset, stage), found in groupby(garbage, key=lambda one: (one.dataset, one.stage)):
        sizes = [one.num_bytes for one in found]
        table.add_row(dataset, stage, str(len(sizes)), f"{sum(sizes) / 2**20:,.1f}")
    return table


def show_run(record: RunRecord, root: Path) -> Group:
    """Lineage and facts of every stage of a run, then its metrics."""
    paths = record.paths(root)
    lines = Text(f"run {record.name}: {record.status}, {record.started} to {record.finished or '...'}")
    for given in record.overrides:
        lines.append(f"\nset {given}")
    if record.error:
        lines.append(f"\n{record.error}", style="red")
    table = Table("stage", "this run", "fingerprint", "from", "seconds", "peak GiB", "facts")
    for stage, fingerprint in record.fingerprints.items():
        manifest = read_manifest(paths.folder(stage))
        if manifest is None:
            table.add_row(stage, record.stages.get(stage, "not there"), fingerprint[:10])
            continue
        parents = "\n".join(f"{name} {value[:10]}" for name, value in manifest["parents"].items())
        files = ", ".join(sorted(manifest["ingredients"].get("inputs", {})))
        facts = "\n".join(line for key, value in manifest["facts"].items() for line in _fact_lines(key, value))
        table.add_row(
            stage,
            record.stages.get(stage, ""),
            fingerprint[:10],
            "\n".join(filter(None, [parents, files])),
            f"{manifest['seconds']:.1f}",
            f"{manifest['peak_bytes'] / 2**30:.2f}",
            facts,
        )
    parts: list[RenderableType] = [lines, table]
    if "evaluate" in record.fingerprints and paths.is_here("evaluate"):
        parts.append(metrics_tables(paths.folder("evaluate"), record.settings().evaluate))
    if decision := read_decision(root, record.dataset, record.name):
        parts.append(promotion_table(decision))
    return Group(*parts)


def promotion_table(decision: Mapping[str, Any]) -> Group:
    """A promotion decision: its reason, and every comparison with its numbers (none in decisions of older versions).

    Args:
        decision: as ``decision.json`` has it.
    """
    line = Text(headline_of(decision))
    table = Table("compared with", "version", *NUMBERS, "users", "verdict", "why skipped", title_justify="left")
    for row in decision_rows(decision):
        why = "" if row.difference else row.reason
        numbers = (getattr(row, name) for name in NUMBERS)
        contract = " (its own prompts)" if row.contract else ""
        table.add_row(f"{row.name}{contract}", row.version, *numbers, row.users, row.verdict, Text(why))
    return Group(line, table) if table.rows else Group(line)


def _fact_lines(key: str, value: Any) -> list[str]:
    """A fact on one line; one that holds further groups, such as counts by table, on a line per group."""
    if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
        return [key, *(f"  {name} {fact_text(inner)}" for name, inner in value.items())]
    return [f"{key} {fact_text(value)}"]


def metrics_tables(evaluate: Path, settings: EvaluateConfig) -> Group:
    """The tables at the end of a run, from ``evaluate/metrics.parquet`` and ``metrics.json``."""
    frame = read_parquet(evaluate / "metrics.parquet")
    flat = json.loads((evaluate / "metrics.json").read_text(encoding="utf-8"))
    everyone = frame.filter(pl.col("group") == "all")
    sure = f"{settings.confidence:.0%} interval"
    rows = retrieval_rows(everyone["row"].unique().to_list())
    systems = ranked_systems(everyone["row"])
    retrieval = _metric_table(everyone, f"first stage, all films, {sure}", rows, settings.retrieval_cutoffs)
    reranking = _metric_table(everyone, f"same candidates, re-ranked, {sure}", systems, settings.rerank_cutoffs)
    shares = Table("figure", "value", title="bounds and form", title_justify="left")
    shares.add_row("retrieval ceiling (held-out film among the candidates)", _percent(flat.get("retrieval_ceiling")))
    for system in ("untuned", "tuned"):
        for mode in ("constrained", "unconstrained"):
            share = _percent(flat.get(f"{system}_valid_answers_{mode}"))
            shares.add_row(f"valid answers, {system}, {mode}", share)
    return Group(retrieval, reranking, shares)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _metric_table(frame: pl.DataFrame, title: str, rows: Sequence[str], cutoffs: Sequence[int]) -> Table:
    names = metric_names(cutoffs)
    viewers = frame.filter(pl.col("row").is_in(rows)).get_column("num_viewers").max()
    table = Table("", *names, title=f"{title}, {viewers!s} test users", title_justify="left")
    cells = {(row["row"], row["metric"]): row for row in frame.iter_rows(named=True)}

    def cell(row: str, name: str) -> str:
        found = cells.get((row, name))
        return f"{found['value']:.3f} ({found['low']:.3f}-{found['high']:.3f})" if found else "-"

    users = dict(frame.filter(pl.col("metric") == names[0]).select("row", "num_viewers").iter_rows())
    for row in rows:
        fewer = f" ({users[row]} users)" if users.get(row, viewers) != viewers else ""
        table.add_row(f"{row}{fewer}", *(cell(row, name) for name in names))
    return table


def where_things_are(record: RunRecord, root: Path, config: RunConfig) -> Text:
    """Folders of the shards, adapter and reports, and the commands that open the pages."""
    paths = record.paths(root)
    uri = tracking_uri(config.tracking, root)
    page = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    serve = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false .venv/bin/mlflow server --host 127.0.0.1 --port 5000"
    store = "" if uri.startswith("http") else f"{serve} --backend-store-uri {shlex.quote(uri)}\n           then "
    return Text(
        f"run        {record.name}\n"
        f"shards     {paths.folder('generate')}\n"
        f"quality    {quality_folder(root, record.dataset, record.name) / PAGE}\n"
        f"adapter    {paths.folder('finetune') / 'adapter'}\n"
        f"report     {run_page(root, record)}\n"
        f"MLflow     {store}open {page}/#/experiments/{_experiment(record)}\n"
        f"Prefect    PREFECT_SERVER_ANALYTICS_ENABLED=false .venv/bin/prefect server start\n"
        f"           then open http://127.0.0.1:4200/runs\n"
        f"lineage    .venv/bin/tripletune show {record.name} --full"
    )


def _experiment(record: RunRecord) -> str:
    return f"{record.mlflow_experiment_id}/runs?workflowType=machine_learning"


def markdown_summary(evaluate: Path) -> str:
    """The metrics as a Markdown table, for Prefect's page."""
    frame = read_parquet(evaluate / "metrics.parquet")
    names = ("row", "group", "metric", "value", "low", "high")
    rows = [[fact_text(row[name]) for name in names] for row in frame.iter_rows(named=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, ["---"] * len(names), *rows])
