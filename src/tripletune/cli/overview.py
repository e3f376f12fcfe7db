"""A run in a few lines and in a row: for ``show``, ``runs`` and ``quality``, as plain data and as Rich tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from tripletune.config import TrackingConfig
from tripletune.errors import MissingArtifactError
from tripletune.evaluate.metrics import PROMOTION_METRIC
from tripletune.evaluate.verdict import Verdict
from tripletune.promote.pages import PAGE as DECISION_PAGE
from tripletune.promote.pages import headline as decision_headline
from tripletune.quality import FIGURES, PAGE
from tripletune.schemas.rank import SERVED
from tripletune.store.champion import PROMOTE, read_decision, standing_champion
from tripletune.store.paths import read_manifest
from tripletune.store.runs import RunRecord, quality_folder, run_page, tracking_uri
from tripletune.summary import shown_verdicts

STYLES = {"completed": "green", "failed": "red", "killed": "red", "running": "yellow"}
SHOWN_SHIFTS = 8
"""Shifts on the screen; the page has all."""


class RunRow(NamedTuple):
    """A run in one line."""

    run: str
    dataset: str
    status: str
    started: str
    """UTC, ISO 8601."""
    minutes: float | None
    """Between start and end; None while it runs."""
    metric: float | None
    """``PROMOTION_METRIC`` on test of what the run serves; None before it is evaluated."""
    promotion: str
    """``champion``, ``promoted``, ``not promoted``, or empty where the run made no decision."""
    changed: str
    """Settings that were given in place of the preset's."""
    error: str


def run_rows(records: Iterable[RunRecord], root: Path) -> list[RunRow]:
    """A line for each run, in the given order."""
    champions: dict[tuple[str, str], str] = {}
    rows = []
    for record in records:
        decision = read_decision(root, record.dataset, record.name)
        key = (record.dataset, decision.get("model", ""))
        if decision and key not in champions:
            champion = standing_champion(root, *key)
            champions[key] = champion.run if champion else ""
        rows.append(
            RunRow(
                record.name,
                record.dataset,
                record.status,
                record.started,
                _minutes(record),
                _served_metric(record, root),
                _promotion(record.name, decision, champions.get(key, "")),
                "; ".join(record.overrides),
                record.error,
            )
        )
    return rows


def _minutes(record: RunRecord) -> float | None:
    try:
        span = datetime.fromisoformat(record.finished) - datetime.fromisoformat(record.started)
    except ValueError:
        return None
    return round(span.total_seconds() / 60, 1)


def _served_metric(record: RunRecord, root: Path) -> float | None:
    if "evaluate" not in record.fingerprints:
        return None
    try:
        path = record.paths(root).folder("evaluate") / "metrics.json"
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    value = found.get(f"{SERVED}_{PROMOTION_METRIC}", found.get(f"tuned_{PROMOTION_METRIC}"))
    return None if value is None else float(value)


def _promotion(run: str, decision: Mapping[str, Any], champion: str) -> str:
    if not decision:
        return ""
    if not decision["promote"]:
        return "not promoted"
    return "champion" if run == champion else "promoted"


def runs_table(rows: Sequence[RunRow], left_out: int) -> Table:
    """Table of runs, as given.

    Args:
        rows: of the table.
        left_out: older runs that it leaves out, which its last line counts.
    """
    table = Table("run", "status", "started, UTC", "minutes", PROMOTION_METRIC, "promotion", "settings changed, error")
    if left_out:
        table.caption = f"{left_out:,} older runs are left out; --last 0 shows all"
    for row in rows:
        table.add_row(
            row.run,
            Text(row.status, style=STYLES[row.status]),
            row.started.replace("T", " ").removesuffix("Z"),
            "" if row.minutes is None else f"{row.minutes:.1f}",
            "" if row.metric is None else f"{row.metric:.4f}",
            row.promotion,
            Text(row.error or row.changed),
        )
    return table


class Overview(NamedTuple):
    """What a run is, what it showed, and where its pages are."""

    record: RunRecord
    verdicts: list[Verdict]
    decision: dict[str, Any]
    addresses: dict[str, str]
    """``report``, ``quality`` and ``decision``, where they are there, and ``mlflow``."""


def overview(record: RunRecord, root: Path) -> Overview:
    """What ``show`` says of a run.

    Args:
        record: of the run.
        root: the artifact root.
    """
    shown: list[Verdict] = []
    if "evaluate" in record.fingerprints and record.paths(root).is_here("evaluate"):
        shown = shown_verdicts(record, root)
    pages = {
        "report": run_page(root, record),
        "quality": quality_folder(root, record.dataset, record.name) / PAGE,
        "decision": root / record.dataset / PROMOTE / record.name / DECISION_PAGE,
    }
    addresses = {name: str(path) for name, path in pages.items() if path.is_file()}
    if record.mlflow_run_id:
        # that section alone: settings of other versions may have what this one no longer knows
        uri = tracking_uri(TrackingConfig.model_validate(record.config.get("tracking", {})), root)
        page = f"/#/experiments/{record.mlflow_experiment_id}/runs/{record.mlflow_run_id}"
        addresses["mlflow"] = f"{uri}{page}" if uri.startswith("http") else f"{uri}, run {record.mlflow_run_id}"
    return Overview(record, shown, read_decision(root, record.dataset, record.name), addresses)


def overview_text(found: Overview) -> Text:
    """The overview in lines for a terminal."""
    record = found.record
    lines = Text(f"run {record.name}: ")
    lines.append(record.status, style=STYLES[record.status])
    lines.append(f", {record.started} to {record.finished or '...'}")
    for given in record.overrides:
        lines.append(f"\nset {given}")
    if record.error:
        lines.append(f"\n{record.error}", style="red")
    counts = Counter(record.stages.values())
    stages = [f"{counts[how]} {how}" for how in ("made", "reused", "failed") if counts[how]]
    lines.append(f"\nstages     {', '.join(stages) or 'none yet'}")
    for how in ("made", "failed"):
        if named := [stage for stage, what in record.stages.items() if what == how]:
            lines.append(f"; {how}: {', '.join(named)}")
    for one in found.verdicts:
        lines.append(f"\n{one.question} ")
        lines.append(f"{one.word}.", style="bold")
        lines.append(f" {one.text}")
    if found.decision:
        lines.append(f"\n{decision_headline(found.decision)}")
    for name, address in found.addresses.items():
        lines.append(f"\n{name:<10} {address}")
    return lines


def run_as_data(record: RunRecord, root: Path) -> dict[str, Any]:
    """All that is recorded of a run, as plain data: settings, the stages' facts, verdicts, decision, pages, metrics."""
    found = overview(record, root)
    paths = record.paths(root)
    stages = {
        stage: {
            "this_run": record.stages.get(stage, ""),
            "fingerprint": fingerprint,
            "folder": str(paths.folder(stage)),
            "manifest": read_manifest(paths.folder(stage)),
        }
        for stage, fingerprint in record.fingerprints.items()
    }
    metrics = {}
    if found.verdicts:
        metrics = json.loads((paths.folder("evaluate") / "metrics.json").read_text(encoding="utf-8"))
    return {
        **record.model_dump(mode="json", exclude={"fingerprints", "stages"}),
        "stages": stages,
        "verdicts": [one._asdict() for one in found.verdicts],
        "promotion": found.decision,
        "addresses": found.addresses,
        "metrics": metrics,
    }


def read_quality(record: RunRecord, root: Path) -> dict[str, Any]:
    """The figures of a run's shards as the run measured them, ``quality.json``.

    Raises:
        MissingArtifactError: the run has measured none.
    """
    path = quality_folder(root, record.dataset, record.name) / FIGURES
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise MissingArtifactError(
            f"run {record.name!r} has no {path}: it measured no shards, as members of an ablation set; name another run"
        ) from None
    return found


def quality_view(figures: Mapping[str, Any], page: Path) -> Group:
    """The shards' examples and answers by purpose, their drift since the last run, flaws, and where the page is."""
    answers = {line["purpose"]: line for line in figures["answers"]}
    places = {line["purpose"]: line for line in figures["answer_position"]}
    table = Table("purpose", "examples", "answers", "retrieved", "p, even places", title_justify="left")
    table.title = Text(f"shards of {figures['run']}: {figures['examples']:,} examples")
    for line in figures["audience"]:
        purpose = line["purpose"]
        share, p_value = answers[purpose]["share_retrieved"], places.get(purpose, {}).get("p_value")
        table.add_row(
            purpose,
            f"{line['warm'] + line['unseen']:,}",
            f"{answers[purpose]['answers']:,}",
            "-" if share is None else f"{100 * share:.1f} %",
            "-" if p_value is None else f"{p_value:.3f}",
        )
    kinds = figures["flaws"]["kinds"]
    flaws = ", ".join(f"{line['kind']} {line['examples']:,}" for line in kinds) or "none"
    end = Text(f"flaws of text: {flaws}\npage: {page}")
    if figures["not_compared"]:
        return Group(table, Text(f"drift: not measured: {figures['not_compared']}"), end)
    shifts = Table("drift of", "statistic", "value", "limit", "then", "now", title_justify="left")
    shifts.title = Text(f"since {figures['compared_with']['run']}, the largest {SHOWN_SHIFTS}")
    for shift in sorted(figures["shifts"], key=lambda one: (-one["above"], -one["value"]))[:SHOWN_SHIFTS]:
        shifts.add_row(
            Text(shift["measure"]),
            shift["statistic"],
            Text(f"{shift['value']:.4f}", style="red" if shift["above"] else ""),
            f"{shift['limit']:g}" if shift["limit"] else "none",
            str(shift["before"]),
            str(shift["now"]),
        )
    return Group(table, shifts, end)
