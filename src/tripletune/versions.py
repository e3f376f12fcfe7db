"""Versions of the registered model: register, find, download and roll back.

A version is a model of MLflow 3 (``LoggedModel``) that ``mlflow.pyfunc.load_model`` loads: see ``serve.package``.
``mlflow.transformers`` would reload a PEFT model over a local base with wrong weights.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from tripletune.errors import MissingArtifactError
from tripletune.serve.layout import VersionFiles
from tripletune.tracking import StageRun, Tracker

CHAMPION, BEST = "champion", "best"
"""Aliases of the version that is served, and of the one that later adapters are held to."""
ROLLED_BACK, BEST_BEFORE = "rolled_back", "best_before"
"""Tags of a version: when it was taken back, and the version that was the best one when it was promoted."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the registered model."""

    number: str
    fingerprint: str
    """Of the finetune output it is."""
    run: str
    """That promoted it; empty where the version does not say."""
    source: str
    """Address of its files."""
    is_rolled_back: bool = False
    best_before: str = ""
    """Number of the version that was the best one when this one was promoted; empty: none, or not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a new version says of itself."""

    model: str
    """Name in the registry."""
    description: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def find_version(tracker: Tracker, model: str, alias: str = CHAMPION) -> Version | None:
    """The version that holds an alias, or None when the registry has no such model or no version of it holds it.

    Raises:
        MlflowException: the store did not answer; that must never look like "no champion yet".
    """
    try:
        found = tracker.client().get_model_version_by_alias(model, alias)
    except MlflowException as error:
        unknown_alias = error.error_code == "INVALID_PARAMETER_VALUE" and "alias" in str(error).lower()
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or unknown_alias:
            return None
        raise
    return _version(found)


def find_version_before(tracker: Tracker, model: str, time_ms: int) -> Version | None:
    """The champion at a time, as promotions left it: each makes a version. One that was rolled back since does not
    count, and an alias that was moved by hand is not seen.

    Args:
        tracker: the store.
        model: name in the registry; a name it does not know has no version.
        time_ms: milliseconds since 1970.
    """
    before = [one for one in _all(tracker, model) if one.creation_timestamp <= time_ms]
    kept = [one for one in before if ROLLED_BACK not in one.tags]
    newest = max(kept, key=lambda one: (one.creation_timestamp, int(one.version)), default=None)
    return _version(newest) if newest else None


def list_versions(tracker: Tracker, model: str) -> list[Version]:
    """All versions, oldest first."""
    return [_version(one) for one in sorted(_all(tracker, model), key=lambda one: int(one.version))]


def _all(tracker: Tracker, model: str) -> list[ModelVersion]:
    return list(tracker.client().search_model_versions(f"name = '{model}'", max_results=10_000))


def _version(found: ModelVersion) -> Version:
    tags = found.tags
    return Version(
        str(found.version),
        tags.get("fingerprint", ""),
        tags.get("run", ""),
        found.source,
        ROLLED_BACK in tags,
        tags.get(BEST_BEFORE, ""),
    )


def download_version(tracker: Tracker, version: Version, folder: Path) -> VersionFiles:
    """Copy a version's files below ``folder``, which replaces what is there.

    Raises:
        MissingArtifactError: its files are gone.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        found = mlflow.artifacts.download_artifacts(
            artifact_uri=version.source, dst_path=str(folder), tracking_uri=tracker.uri, registry_uri=tracker.uri
        )
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MissingArtifactError(f"version {version.number}: its files cannot be had ({reason})") from None
    return VersionFiles.find(Path(found))


def register_version(stage: StageRun, entry: Entry, files: Path, *, best: str = "") -> str:
    """Register files as a new version and move the champion alias to it; returns the version.

    Args:
        stage: child run that the version belongs to.
        entry: name, description, tags and metrics.
        files: a folder of ``serve.package.save_version``.
        best: the version that is and stays the best one; empty: the new one is.
    """
    client, model = stage.tracker.client(), entry.model
    _require_model(client, model)
    tags = dict(entry.tags) | ({BEST_BEFORE: best} if best else _best_before(client, model))
    logged = client.create_logged_model(
        stage.tracker.experiment_id, model, stage.run_id, tags={"run": tags.get("run", "")}, model_type="ranking"
    )
    client.log_model_artifacts(logged.model_id, str(files))
    client.finalize_logged_model(logged.model_id, "READY")
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, 0, model_id=logged.model_id) for name, value in entry.metrics.items()]
    stage.tracker.log(stage.run_id, metrics=metrics)
    version = client.create_model_version(
        model,
        logged.artifact_location,
        run_id=stage.run_id,
        tags=tags,
        description=entry.description,
        model_id=logged.model_id,
    )
    # the title first: killed between the two, later adapters are held to more and not to less
    client.set_registered_model_alias(model, BEST, best or version.version)
    client.set_registered_model_alias(model, CHAMPION, version.version)
    return str(version.version)


def _require_model(client: MlflowClient, model: str) -> None:
    try:
        client.create_registered_model(model, description="Tuned models of tripletune; champion: the one that serves")
    except MlflowException:
        client.get_registered_model(model)  # it exists; anything else raises here


def _best_before(client: MlflowClient, model: str) -> dict[str, str]:
    number = client.get_registered_model(model).aliases.get(BEST)
    return {BEST_BEFORE: str(number)} if number else {}


def move_champion(
    tracker: Tracker, model: str, before: Version, to: Version, best: str, tags: Mapping[str, str]
) -> None:
    """Serve another version: move the alias, and mark the one that served.

    Args:
        tracker: the store.
        model: name in the registry.
        before: the champion, which gets the tags.
        to: the champion from now on.
        best: the best version from now on.
        tags: ``ROLLED_BACK``, and who and why.
    """
    client = tracker.client()
    for name, value in tags.items():
        client.set_model_version_tag(model, before.number, name, value[:5000])
    client.set_registered_model_alias(model, BEST, best)
    client.set_registered_model_alias(model, CHAMPION, to.number)
    if to.is_rolled_back:
        client.delete_model_version_tag(model, to.number, ROLLED_BACK)
