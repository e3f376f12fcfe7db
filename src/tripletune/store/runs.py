"""Run records, ``artifacts/runs/<run>.json``: which outputs a run used, and how it ended."""

from __future__ import annotations

import difflib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from tripletune.config import RunConfig, TrackingConfig
from tripletune.errors import MissingArtifactError
from tripletune.store.files import make_folder, write_json
from tripletune.store.paths import RunPaths


class RunRecord(BaseModel):
    """One run: its settings, the fingerprints of its stages and how it went."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    dataset: str
    status: Literal["running", "completed", "failed"]
    started: str
    """UTC, ISO 8601."""
    finished: str = ""
    error: str = ""
    config: dict[str, Any]
    fingerprints: dict[str, str]
    stages: dict[str, str] = {}
    """``made``, ``reused`` or ``failed``, for each stage that this run has reached."""
    mlflow_run_id: str = ""
    mlflow_experiment_id: str = ""

    def settings(self) -> RunConfig:
        """The config the run was started with."""
        return RunConfig.model_validate(self.config)

    def paths(self, root: Path) -> RunPaths:
        """Where the run's outputs are."""
        return RunPaths(root=root, dataset=self.dataset, fingerprints=self.fingerprints)


def tracking_uri(settings: TrackingConfig, root: Path) -> str:
    """The configured MLflow store, the one that ``MLFLOW_TRACKING_URI`` names, or a SQLite file under the root."""
    return settings.uri or os.environ.get("MLFLOW_TRACKING_URI", "") or f"sqlite:///{(root / 'mlflow.db').resolve()}"


def utc_now() -> str:
    """The present second, UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_run_name(root: Path, dataset: str) -> str:
    """Reserve ``<dataset>-<UTC time>``, with a number behind it when two runs start in one second."""
    make_folder(root / "runs", "--artifacts")
    base = f"{dataset}-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}"
    for name in (base, *(f"{base}-{number}" for number in range(2, 1000))):
        try:
            (root / "runs" / f"{name}.json").touch(exist_ok=False)
        except FileExistsError:
            continue
        return name
    raise RuntimeError(f"a thousand runs of {dataset} in one second")


def write_run(root: Path, record: RunRecord) -> None:
    """Write or replace a run's file."""
    make_folder(root / "runs", "--artifacts")
    write_json(root / "runs" / f"{record.name}.json", record.model_dump(mode="json"))


def update_run(root: Path, name: str, *, stage: tuple[str, str] | None = None, **changes: str) -> None:
    """Change fields of a run's file; ``stage`` adds how one stage ended. Parallel stages take turns."""
    with FileLock(root / "runs" / f".{name}.lock"):
        record = read_run(root, name)
        stages = record.stages | (dict([stage]) if stage else {})
        write_run(root, RunRecord.model_validate(record.model_dump() | changes | {"stages": stages}))


def list_runs(root: Path) -> list[RunRecord]:
    """All runs, oldest first; files that are no run record are skipped."""
    records = []
    for path in (root / "runs").glob("*.json"):
        try:
            records.append(RunRecord.model_validate(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, ValidationError):
            continue
    return sorted(records, key=lambda record: (record.started, record.name))


def earlier_run(paths: RunPaths, stage: str, *, but: str = "") -> RunRecord | None:
    """The newest other completed run of the same dataset with a finished, different output of a stage.

    Args:
        paths: of the present run.
        stage: whose outputs are compared.
        but: name of the present run.
    """
    for record in reversed(list_runs(paths.root)):
        is_other = record.name != but and record.dataset == paths.dataset and record.status == "completed"
        is_other &= stage in record.stages  # a run of another part has the fingerprint, but did not run it
        made_another = record.fingerprints.get(stage, paths.fingerprints[stage]) != paths.fingerprints[stage]
        if is_other and made_another and record.paths(paths.root).is_done(stage):
            return record
    return None


def read_run(root: Path, name: str = "", *, needs: str = "") -> RunRecord:
    """A run by name, or the latest one.

    Args:
        root: the artifact root.
        name: of the run; empty takes the latest.
        needs: a stage whose output must be there for a run to count as the latest.

    Raises:
        MissingArtifactError: there is no such run; the message names those of a similar name, or the latest.
    """
    records = list_runs(root)
    for record in reversed(records):
        if record.name == name or (not name and (not needs or record.paths(root).is_done(needs))):
            return record
    advice = f"make one with: tripletune run --artifacts {root}"
    if not records:
        raise MissingArtifactError(f"no run in {root} yet (outputs of single stages are not a run); {advice}")
    near = difflib.get_close_matches(name, [record.name for record in reversed(records)], n=3) if name else []
    if near:
        raise MissingArtifactError(f"no run {name!r} in {root}; did you mean {', '.join(near)}?")
    known = ", ".join(record.name for record in records[-5:])
    wanted = f"run {name!r}" if name else f"run with a finished '{needs}'"
    raise MissingArtifactError(f"no {wanted} in {root}; runs there: {known}; or {advice}")
