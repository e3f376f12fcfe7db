"""MLflow, and the only file that imports it.

One parent run per flow run, a child per stage. Everything goes through ``MlflowClient`` with explicit run ids: stages
run in threads, and the fluent API's "active run" leaves stray runs there. The adapter's own files are the registered
model: ``mlflow.transformers`` reloads a PEFT model over a local base with wrong weights.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tripletune.config import TrackingConfig
from tripletune.fingerprint import sha256_json
from tripletune.paths import Facts, RunPaths
from tripletune.runs import tracking_uri

CHAMPION = "champion"
ADAPTER_FILES = "model"
"""Artifact folder of the promote child: adapter, contract and, for a local base, the base."""

# the store's "creating tables" lines would stand between the progress of the stages
for _name in ("mlflow.store.db.utils", "alembic"):
    logging.getLogger(_name).setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Tracker:
    """Where a run is logged. Plain strings, so that it can travel to a worker."""

    uri: str
    experiment_id: str
    parent_run_id: str

    def client(self) -> MlflowClient:
        """A client on this store."""
        return MlflowClient(self.uri, registry_uri=self.uri)


def start_run(
    settings: TrackingConfig, root: Path, name: str, *, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Tracker:
    """Open the parent run.

    A fresh SQLite store is created under a lock: when several processes do it at once most of them fail.

    Args:
        settings: store and experiment.
        root: the artifact root; a SQLite store and its artifacts lie there.
        name: the run's name in the page.
        params: flat settings. Passwords do not belong here, and none of our settings is one.
        tags: git commit, config hash, Prefect's ids, fingerprints.
    """
    uri = tracking_uri(settings, root)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "mlflow.lock"):
        client = MlflowClient(uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(settings.experiment)
        if experiment is None:
            location = (root / "mlflow").resolve().as_uri() if uri.startswith("sqlite:") else None
            experiment_id = client.create_experiment(settings.experiment, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
    run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
    client.log_batch(run.info.run_id, params=[Param(key, str(value)[:6000]) for key, value in params.items()])
    return Tracker(uri, experiment_id, run.info.run_id)


def end_run(tracker: Tracker, *, failed: bool) -> None:
    """Close the parent run."""
    tracker.client().set_terminated(tracker.parent_run_id, status="FAILED" if failed else "FINISHED")


@dataclass(frozen=True, slots=True)
class StageRun:
    """The child run of one stage."""

    tracker: Tracker
    run_id: str

    def log_curve(self, step: int, values: Mapping[str, float]) -> None:
        """Log one step of a training curve."""
        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, step) for key, value in values.items()]
        self.tracker.client().log_batch(self.run_id, metrics=metrics)

    def log_output(self, paths: RunPaths, stage: str, *, reused: bool) -> None:
        """Log a finished stage: facts, files as inputs with their fingerprint as digest, report and adapter."""
        client, manifest = self.tracker.client(), paths.manifest(stage)
        facts: Facts = manifest["facts"]
        numbers = {key: float(value) for key, value in facts.items() if isinstance(value, int | float)}
        numbers |= {"stage_seconds": manifest["seconds"], "stage_peak_gib": manifest["peak_bytes"] / 2**30}
        now = int(time.time() * 1000)
        texts = {f"fact.{key}": str(value)[:4000] for key, value in facts.items() if isinstance(value, str)}
        tags = {"reused": str(reused).lower(), "fingerprint": manifest["fingerprint"], **texts}
        client.log_batch(
            self.run_id,
            metrics=[Metric(key, value, now, 0) for key, value in numbers.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        inputs = {parent: paths.folder(parent) for parent in manifest["parents"]}
        client.log_inputs(self.run_id, [_dataset(paths, parent, folder) for parent, folder in inputs.items()])
        folder = paths.folder(stage)
        for page in ("report.html", "metrics.json"):
            if (folder / page).is_file():
                client.log_artifact(self.run_id, str(folder / page))
                client.log_artifact(self.tracker.parent_run_id, str(folder / page))

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        """Log the figures people compare runs by on the parent: the page shows children collapsed."""
        now = int(time.time() * 1000)
        batch = [Metric(key, float(value), now, 0) for key, value in metrics.items() if value is not None]
        self.tracker.client().log_batch(self.tracker.parent_run_id, metrics=batch)

    def log_decision(self, reason: str, difference: float | None, lower_bound: float | None) -> None:
        """Log a promotion's outcome as tags and, where there was a comparison, as metrics."""
        client, now = self.tracker.client(), int(time.time() * 1000)
        named = {"champion_difference": difference, "champion_lower_bound": lower_bound}
        metrics = [Metric(key, value, now, 0) for key, value in named.items() if value is not None]
        for run_id in (self.run_id, self.tracker.parent_run_id):
            client.log_batch(run_id, metrics=metrics, tags=[RunTag("promotion", reason[:4000])])


def _dataset(paths: RunPaths, stage: str, folder: Path) -> DatasetInput:
    # MLflow keeps 36 characters of a digest; a fingerprint has 32
    dataset = Dataset(
        name=f"{paths.dataset}/{stage}",
        digest=paths.fingerprints[stage],
        source_type="local",
        source=f'{{"uri": "{folder}"}}',
    )
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", stage)])


@contextmanager
def stage_run(tracker: Tracker, stage: str, tags: Mapping[str, str]) -> Iterator[StageRun]:
    """Open the child run of a stage; it ends as FAILED when the block raises."""
    client = tracker.client()
    run = client.create_run(
        tracker.experiment_id,
        run_name=stage,
        tags={"mlflow.parentRunId": tracker.parent_run_id, "stage": stage, **tags},
    )
    try:
        yield StageRun(tracker, run.info.run_id)
    except BaseException:
        client.set_terminated(run.info.run_id, status="FAILED")
        raise
    client.set_terminated(run.info.run_id)


@dataclass(frozen=True, slots=True)
class Champion:
    """The model version that holds the alias."""

    version: str
    fingerprint: str
    folder: Path
    """A local copy of its adapter, contract and, if it has one, its base."""


def read_champion(tracker: Tracker, model: str, download_to: Path) -> Champion | None:
    """The champion and its files, or None when no version holds the alias."""
    client = tracker.client()
    try:
        version = client.get_model_version_by_alias(model, CHAMPION)
    except MlflowException:
        return None
    download_to.mkdir(parents=True, exist_ok=True)
    folder = client.download_artifacts(version.run_id, ADAPTER_FILES, str(download_to))
    return Champion(str(version.version), version.tags.get("fingerprint", ""), Path(folder))


def champion_fingerprint(tracker: Tracker, model: str) -> str | None:
    """Fingerprint of the champion's finetune output, or None when there is no champion."""
    try:
        version = tracker.client().get_model_version_by_alias(model, CHAMPION)
    except MlflowException:
        return None
    return str(version.tags.get("fingerprint", ""))


def promote_adapter(tracker: Tracker, stage: StageRun, model: str, folder: Path, tags: Mapping[str, str]) -> str:
    """Register an adapter's files as a new version and move the champion alias to it; returns the version."""
    client = tracker.client()
    try:
        client.create_registered_model(model)
    except MlflowException:
        client.get_registered_model(model)  # it exists; anything else raises here
    client.log_artifacts(stage.run_id, str(folder), ADAPTER_FILES)
    run = client.get_run(stage.run_id)
    source = f"{run.info.artifact_uri}/{ADAPTER_FILES}"
    version = client.create_model_version(model, source, run_id=stage.run_id, tags=dict(tags))
    client.set_registered_model_alias(model, CHAMPION, version.version)
    return str(version.version)


def config_hash(flat: Mapping[str, Any]) -> str:
    """SHA-256 of a flat config, to see at a glance whether two runs had the same settings."""
    return sha256_json(dict(flat))
