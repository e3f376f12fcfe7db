"""Lines of the log about a stage: one when it starts, one when it ends, from its manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tripletune.errors import reason_of
from tripletune.pipeline.registry import BY_NAME
from tripletune.store.fingerprint import differences
from tripletune.store.paths import MANIFEST, RunPaths, read_manifest

FEW_USERS = 100
"""Fewer test users are pointed out: with a hit rate of .1 the 95 % interval is then wider than +-.06."""
_ROW_COUNTS = {"rows_kept", "rows_rejected"}
_FEW = 3
"""Reasons and outside inputs that a line names."""


def starting(stage: str, paths: RunPaths) -> str:
    """What a stage is about to do, from what, and why its output is not reused."""
    declared = BY_NAME[stage]
    what = _first_clause(declared.help)
    if declared.never_reused:
        return f"{stage} starts: {what}; never reused: {declared.never_reused}"
    try:
        because = _some(reasons_to_make(paths, stage))
    except (OSError, ValueError, KeyError):  # gc may be removing the last output
        because = "its last output cannot be read"
    return f"{stage} starts: {what}; from {_sources(paths, stage)}; not reused: {because}"


def ending(stage: str, paths: RunPaths, *, reused: bool) -> str:
    """What a finished stage took and gave: seconds, peak memory, rows in and out, and its headline."""
    manifest = paths.manifest(stage)
    took = _took(manifest["seconds"], manifest["peak_bytes"])
    how = f"reused, {paths.fingerprints[stage][:8]}, made" if reused else "done"
    return f"{stage} {how} in {took}: {_rows(paths, manifest)}{headline(stage, manifest['facts'])}"


def ending_unkept(stage: str, folder: Path, seconds: float, peak_bytes: int) -> str:
    """The same of a stage that every run repeats, and which has no manifest.

    Args:
        stage: its name.
        folder: what it wrote.
        seconds, peak_bytes: as ``Meter`` measured them.
    """
    result = _RESULTS[stage](folder)
    return f"{stage} done in {_took(seconds, peak_bytes)}: {result}"


def failing(stage: str, seconds: float, error: BaseException) -> str:
    """When and why a stage broke off."""
    return f"{stage} failed after {seconds:,.1f} s: {reason_of(error)}"


def _first_clause(help_text: str) -> str:
    what = re.split(r"[.;] |\.\n|\.$", help_text.strip(), maxsplit=1)[0]
    what = " ".join(what.split())  # of a sentence over several lines
    first = what.split()[0]
    return what if first[1:] != first[1:].lower() else what[0].lower() + what[1:]


def _took(seconds: float, peak_bytes: int) -> str:
    return f"{seconds:,.1f} s, peak {peak_bytes / 2**30:.2f} GiB"


def _sources(paths: RunPaths, stage: str) -> str:
    """Parents with the beginning of their fingerprint, and inputs from outside the store."""
    ingredients = paths.ingredients.get(stage, {})
    parents = [f"{name} {value[:8]}" for name, value in ingredients.get("parents", {}).items()]
    outside = sorted(ingredients.get("inputs", {}))
    return ", ".join([*parents, *([_some(outside)] if outside else [])]) or "its settings alone"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more


def _rows(paths: RunPaths, manifest: Mapping[str, Any]) -> str:
    """Rows of all Parquet files of the parents and of the output; empty where it has none."""
    folders = [paths.root / paths.dataset / name / value for name, value in manifest["parents"].items()]
    read = sum(_num_rows(found) for folder in folders if (found := read_manifest(folder)))
    written = _num_rows(manifest)
    taken = f"in {read:,}, " if read else ""
    return f"rows {taken}out {written:,}; " if written else ""


def _num_rows(manifest: Mapping[str, Any]) -> int:
    return sum(file.get("rows", 0) for file in manifest["files"].values())


def _quality_result(folder: Path) -> str:
    found = json.loads((folder / "quality.json").read_text(encoding="utf-8"))
    last = f"compared with {found['compared_with']}" if found["compared_with"] else "not compared with a last run"
    return f"{found['examples']:,} examples, {last}"


def _promote_result(folder: Path) -> str:
    from tripletune.evaluate.metrics import PROMOTION_METRIC  # takes numpy and Polars

    found = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    value = "" if found.get("value") is None else f", {PROMOTION_METRIC} {found['value']:.4f}"
    return f"{'promoted' if found['promote'] else 'not promoted'}{value}"


_RESULTS = {"quality": _quality_result, "promote": _promote_result}
"""What the stages without a manifest say of their result."""


def reasons_to_make(paths: RunPaths, stage: str) -> list[str]:
    """Why a stage's output can't be reused: what differs from the newest one."""
    work = paths.folder(stage).with_name(f"{paths.fingerprints[stage]}.work")
    left = [f"a run that stopped half-way left its work in {work}"] if work.is_dir() else []
    finished = [path for path in paths.folder(stage).parent.glob(f"*/{MANIFEST}") if path.parent.suffix != ".work"]
    manifests = sorted(finished, key=lambda path: path.stat().st_mtime)
    if not manifests:
        return [*left, "there is no earlier output"]
    before = json.loads(manifests[-1].read_text(encoding="utf-8"))["ingredients"]
    return left + (differences(before, paths.ingredients[stage]) or ["its files are gone or were changed"])


def fact_text(value: Any) -> str:
    """A fact as it is shown."""
    if isinstance(value, dict) and value.keys() >= _ROW_COUNTS:
        return f"{value['rows_kept']:,} kept, {value['rows_rejected']:,} rejected"
    if isinstance(value, dict):
        return ", ".join(f"{key} {fact_text(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def headline(stage: str, facts: Mapping[str, Any]) -> str:
    """One line about a finished stage's output; it always reports rejected rows and a test with few users."""
    if stage == "ingest":
        return _ingest_headline(facts)
    if stage == "split":
        return _split_headline(facts)
    if stage == "knowledge":
        films = facts["entities"]["movie"]
        return f"{films:,} films, {facts.get('films_with_credits', 0):,} with credits, {facts['triples']:,} triples"
    named = [name for name in BY_NAME[stage].headline if name in facts] or list(facts)[:3]
    kept = {name.replace("_", " "): facts[name] for name in named}
    return ", ".join(
        f"{name} ({fact_text(value)})" if isinstance(value, dict) else f"{name} {fact_text(value)}"
        for name, value in kept.items()
    )


def _ingest_headline(facts: Mapping[str, Any]) -> str:
    tables = {name: counts["rows_rejected"] for name, counts in facts["tables"].items() if name != "ratings"}
    counts = {"": facts["rows_rejected"]} | {f" {name}": count for name, count in tables.items()}
    rejected = [f"{count:,}{name} rejected" for name, count in counts.items() if count]
    if rejected:
        rejected[-1] += " (see rejects.parquet)"
    totals = [f"{facts['viewers']:,} users", f"{facts['movies']:,} films"]
    return ", ".join([f"{facts['rows_kept']:,} ratings kept", *rejected, *totals])


def _split_headline(facts: Mapping[str, Any]) -> str:
    labels = ", ".join(f"{count:,} {name}" for name, count in facts["labels"].items())
    asked = facts["asked_viewers"]
    test = f"{asked['test']:,} of {facts['viewers']:,} users have a test query"
    if asked["test"] < FEW_USERS:
        test = f"only {asked['test']:,} users have a test query"
    if frozen := facts.get("frozen"):
        test += f", {frozen['missing']:,} of {frozen['viewers']:,} frozen users could not be kept"
    return f"{facts['protocol']}: {labels}; {test}"
