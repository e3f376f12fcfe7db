"""MLflow logging. Only this module, ``tracked_results``, ``versions`` and the model file of ``serve`` import MLflow.

One parent run per flow run, a child per stage. Everything goes through ``MlflowClient`` with explicit run ids: stages
run in threads, and the fluent API's "active run" leaves stray runs there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit, urlunsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import polars as pl
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from tripletune.config import RunConfig, TrackingConfig
from tripletune.errors import UserError, reason_of
from tripletune.flatten import flatten
from tripletune.noise import silence
from tripletune.reach import require_server
from tripletune.store.alive import holding
from tripletune.store.fingerprint import sha256_json
from tripletune.store.paths import RunPaths
from tripletune.store.read import read_parquet
from tripletune.store.runs import RunRecord, new_run_name, share_run, tracking_uri, update_run, utc_now, write_run

_REPAIR = "start it, or set tracking.uri or MLFLOW_TRACKING_URI to where it is"
DESCRIPTION = "mlflow.note.content"
"""Tag that MLflow's page shows as the run's description."""
MAX_TAG = 8000
"""Characters of a tag that every store takes."""
FAILURE = "failure"
"""Tag of a run, and of its stage, that did not complete: why, in one line."""
PARENT = "mlflow.parentRunId"
"""Tag that makes a run the child of another one."""

NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes where a store does not have a run."""

silence()  # the store's "creating tables" lines and those of a model's checks, in any process


@dataclass(frozen=True, slots=True)
class Tracker:
    """MLflow store, experiment and parent run of a run. Plain strings, so that it can travel to a worker."""

    uri: str
    experiment_id: str
    parent_run_id: str

    def client(self) -> MlflowClient:
        """A client on this store."""
        return MlflowClient(self.uri, registry_uri=self.uri)

    def log(
        self,
        run_id: str,
        *,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
    ) -> None:
        """Log any number of entries; MLflow takes 100 parameters, 100 tags or 1,000 metrics at once."""
        client = self.client()
        for start in range(0, len(metrics), 1000):
            client.log_batch(run_id, metrics=metrics[start : start + 1000])
        for start in range(0, len(params), 100):
            client.log_batch(run_id, params=params[start : start + 100])
        for start in range(0, len(tags), 100):
            client.log_batch(run_id, tags=tags[start : start + 100])

    def describe(self, text: str, pages: Mapping[str, str] = MappingProxyType({})) -> None:
        """Set the description of the parent run, which its page shows as Markdown.

        Args:
            text: Markdown.
            pages: artifacts of the parent by what they are called; each becomes a link that MLflow's page opens.
        """
        links = [f"[{label}]({self.link(path)})" for label, path in pages.items()]
        note = f"{text}\n{' · '.join(links)}\n" if links else text
        self.log(self.parent_run_id, tags=[RunTag(DESCRIPTION, note[:MAX_TAG])])

    def close(self, run_id: str, error: BaseException | str) -> None:
        """End a run that did not complete, with the reason as tag and description; FAILED, or KILLED by a signal.

        Args:
            run_id: of the parent or of a stage.
            error: what ended it; text: why it is known to have been killed.
        """
        reason = error if isinstance(error, str) else reason_of(error)
        failed = isinstance(error, Exception)
        note = f"**{'Failed' if failed else 'Killed'}:** {reason}\n"
        self.log(run_id, tags=[RunTag(FAILURE, reason), RunTag(DESCRIPTION, note)])
        self.client().set_terminated(run_id, status="FAILED" if failed else "KILLED")

    def open_stages(self) -> list[str]:
        """Ids of the parent's children that stand as running."""
        wanted = f"tags.`{PARENT}` = '{self.parent_run_id}' and attributes.status = 'RUNNING'"
        return [run.info.run_id for run in self.client().search_runs([self.experiment_id], wanted)]

    def is_running(self) -> bool:
        """Whether the store has the parent, and it stands as running there."""
        try:
            return str(self.client().get_run(self.parent_run_id).info.status) == "RUNNING"
        except MlflowException as error:
            if error.error_code not in NO_SUCH_RUN:
                raise
            return False

    def url(self, path: str = "") -> str:
        """Address of the parent on the page of an MLflow server, or of one of its artifacts."""
        server = without_password(self.uri).rstrip("/")
        run = f"{server}/#/experiments/{self.experiment_id}/runs/{self.parent_run_id}"
        return f"{run}/artifacts/{path}" if path else run

    def link(self, path: str) -> str:
        """Where MLflow's page shows an artifact of the parent, relative to the page."""
        return f"#/experiments/{self.experiment_id}/runs/{self.parent_run_id}/artifacts/{path}"


def require_store(settings: TrackingConfig, root: Path) -> str:
    """Address of the store; raises ConfigError where it names a server that does not answer."""
    uri = tracking_uri(settings, root)
    require_server("MLflow server", uri, _REPAIR)
    return uri


def without_password(uri: str) -> str:
    """An address without the user name and the password in it."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def start_run(
    settings: TrackingConfig,
    root: Path,
    name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    again: RunRecord | None = None,
) -> Tracker:
    """Open the parent run, or that of an earlier part of the run once more, where this store has it.

    A fresh SQLite store is created under a lock: when several processes do it at once most of them fail.

    Args:
        settings: store and experiment.
        root: the artifact root; a SQLite store and its artifacts lie there.
        name: the run's name in the page.
        params: flat settings. Passwords do not belong here, and none of our settings is one.
        tags: git commit, config hash, Prefect's ids, fingerprints.
        again: record of the run's earlier parts.

    Raises:
        UserError: no server answers at the store's address, or it refuses.
    """
    uri = require_store(settings, root)
    root.mkdir(parents=True, exist_ok=True)
    try:
        return _begin(settings, uri, root, name, params, tags, again)
    except MlflowException as error:
        if not uri.startswith("http"):
            raise
        raise UserError(f"MLflow refuses the run: {str(error).splitlines()[0]}; {_REPAIR}") from error


def _begin(
    settings: TrackingConfig,
    uri: str,
    root: Path,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    again: RunRecord | None,
) -> Tracker:
    with FileLock(root / "mlflow.lock"):
        client = MlflowClient(uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(settings.experiment)
        if experiment is None:
            location = (root / "mlflow").resolve().as_uri() if uri.startswith("sqlite:") else None
            experiment_id = client.create_experiment(settings.experiment, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
    if again and _reopened(client, again.mlflow_run_id):
        tracker = Tracker(uri, again.mlflow_experiment_id, again.mlflow_run_id)
        tracker.log(again.mlflow_run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        return tracker
    run = client.create_run(experiment_id, run_name=name, tags=dict(tags))
    tracker = Tracker(uri, experiment_id, run.info.run_id)
    tracker.log(run.info.run_id, params=_params(params))
    return tracker


def open_registry(settings: TrackingConfig, root: Path) -> Tracker:
    """The store without a run in it, to read the registry alone.

    Args:
        settings, root: as in ``start_run``.
    """
    uri = tracking_uri(settings, root)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "mlflow.lock"):
        MlflowClient(uri, registry_uri=uri).search_registered_models(max_results=1)  # makes a new store's tables
    return Tracker(uri, "", "")


def _reopened(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has a run, which then is running again; a machine's own SQLite file has none of another's."""
    try:
        client.update_run(run_id, status="RUNNING")
        if FAILURE in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, FAILURE)
    except MlflowException as error:
        if error.error_code not in NO_SUCH_RUN:
            raise
        return False
    return True


@contextmanager
def recorded_run(
    settings: RunConfig,
    paths: RunPaths,
    tags: Mapping[str, str],
    again: RunRecord | None = None,
    *,
    overrides: Sequence[str] = (),
    belongs: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[str, Tracker]]:
    """A run from start to end: its name, its parent in MLflow and its file under ``artifacts/runs``, which a shared
    store gets when the run begins and when it ends.

    Args:
        settings: all of them; they become parameters.
        paths: where the stages read and write; the fingerprints become tags.
        tags: what else the parent carries, such as the git commit and Prefect's ids.
        again: record of the run's earlier parts, which maybe ran on another machine; None: a new run begins.
        overrides: settings that were given in place of the preset's, as ``section.key=value``; a tag too.
        belongs: further tags, which the run's file has as well.

    Raises:
        InputError: the shared store cannot be written.
    """
    root, flat = paths.root, settings.flat()
    name = again.name if again else new_run_name(root, settings.dataset, is_shared=bool(paths.shared))
    fingerprints = {f"fingerprint.{stage}": value for stage, value in paths.fingerprints.items()}
    named = {"run": name, "dataset": settings.dataset, "config.sha256": sha256_json(flat), **tags, **fingerprints}
    named |= {**belongs, **({"config.set": "; ".join(overrides)} if overrides else {})}
    with holding(root, name):
        tracker = start_run(settings.tracking, root, name, params=flat, tags=named, again=again)
        record = RunRecord(
            name=name,
            dataset=settings.dataset,
            status="running",
            started=again.started if again else utc_now(),
            stages=again.stages if again else {},
            config=settings.model_dump(mode="json"),
            commit=tags.get("git.commit", ""),
            dirty=tags.get("git.dirty") == "true",
            overrides=again.overrides if again else tuple(overrides),
            tags=again.tags if again else dict(belongs),
            fingerprints=dict(paths.fingerprints),
            mlflow_run_id=tracker.parent_run_id,
            mlflow_experiment_id=tracker.experiment_id,
        )
        write_run(root, record)
        try:
            share_run(root, name, paths.shared)
            yield name, tracker
        except BaseException as error:
            status = "failed" if isinstance(error, Exception) else "killed"
            update_run(root, name, status=status, finished=utc_now(), error=reason_of(error))
            close_all_the_same(tracker, tracker.parent_run_id, error)
            _share_failed(root, name, paths.shared)
            raise
        update_run(root, name, status="completed", finished=utc_now())
        tracker.client().set_terminated(tracker.parent_run_id)
        share_run(root, name, paths.shared)


def close_all_the_same(tracker: Tracker, run_id: str, error: BaseException) -> None:
    """Close a run; trouble with MLflow must not hide the error that ended it."""
    try:
        tracker.close(run_id, error)
    except Exception as trouble:
        logging.getLogger(__name__).warning("MLflow does not know that a run failed: %s", reason_of(trouble))


def _share_failed(root: Path, name: str, address: str) -> None:
    """Push the record of a run that failed; the reason for that must not give way to trouble with the store."""
    try:
        share_run(root, name, address)
    except UserError as error:
        logging.getLogger(__name__).warning("the shared store does not know that %s failed: %s", name, error)


@dataclass(frozen=True, slots=True)
class StageRun:
    """The child run of one stage."""

    tracker: Tracker
    run_id: str
    _times: dict[int, int] = field(default_factory=dict, repr=False, compare=False)
    """Milliseconds at which each step was first logged."""
    _taken: set[tuple[str, int]] = field(default_factory=set, repr=False, compare=False)
    """Name and step of each point of a curve that the store has taken."""

    def log_curve(self, step: int, values: Mapping[str, float]) -> None:
        """Log one step of a training curve.

        The same values of a step may be logged again, as after an error that came behind the writing: they keep their
        time, and MLflow's store holds entries that agree in key, step, value and time once.
        """
        time_ms = self._times.setdefault(step, now_ms())
        metrics = [Metric(metric_name(key), float(value), time_ms, step) for key, value in values.items()]
        self.tracker.log(self.run_id, metrics=metrics)
        self._taken.update((metric.key, metric.step) for metric in metrics)

    def log_output(self, paths: RunPaths, stage: str, *, reused: bool) -> None:
        """Log a finished stage: facts, inputs with their fingerprints as digests, report and metrics file, and of its
        curve what ``log_curve`` has not: all of it, but for a training that was logged while it ran."""
        client, manifest = self.tracker.client(), paths.manifest(stage)
        facts = flatten({**manifest["facts"], "stage_seconds": manifest["seconds"]})
        facts["stage_peak_gib"] = manifest["peak_bytes"] / 2**30
        folder, now = paths.folder(stage), now_ms()
        curve = _curve(folder / "curve.parquet", now)
        last = max((point.step for point in curve), default=0)
        drawn = {point.key for point in curve}  # eval_loss is a fact too, which would be one more point of the curve
        numbers = {metric_name(key): float(value) for key, value in facts.items() if _number(value)}
        # figures that a training logs as it runs, such as its speed, end at the last step, with one value there
        figures = [key for key in numbers if key not in drawn and (key, last) not in self._taken]
        metrics = [Metric(key, numbers[key], now, last) for key in figures]
        texts = {f"fact.{key}": str(value)[:4000] for key, value in facts.items() if isinstance(value, str)}
        tags = {"reused": str(reused).lower(), "fingerprint": manifest["fingerprint"], **texts}
        metrics += self._missing(curve)
        self.tracker.log(self.run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()])
        parents = [_dataset(f"{paths.dataset}/{name}", paths.fingerprints[name], name) for name in manifest["parents"]]
        outside = _outside_datasets(manifest["ingredients"].get("inputs", {}))
        client.log_inputs(self.run_id, [*parents, *outside])
        if outside:
            client.log_inputs(self.tracker.parent_run_id, outside)
        self._log_files(
            [folder / page for page in ("report.html", "metrics.json", "answers.json") if (folder / page).is_file()]
        )

    def _missing(self, curve: Sequence[Metric]) -> list[Metric]:
        """Points that the store has not taken, at the time of their step's first try: where only the answer to it was
        lost, the store holds an entry that agrees, and keeps one."""
        left = [point for point in curve if (point.key, point.step) not in self._taken]
        return [Metric(one.key, one.value, self._times.get(one.step, one.timestamp), one.step) for one in left]

    def log_report(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Log the files and figures of a stage that every run repeats, on the child and on the parent."""
        self._log_files(sorted(path for path in folder.iterdir() if path.is_file()))
        self.log_curve(0, metrics)
        self.log_headline(metrics)

    def _log_files(self, files: Sequence[Path]) -> None:
        for path in files:
            for run_id in (self.run_id, self.tracker.parent_run_id):
                self.tracker.client().log_artifact(run_id, str(path))

    def log_headline(self, metrics: Mapping[str, float]) -> None:
        """Log the figures people compare runs by on the parent: the page shows children collapsed."""
        now = now_ms()
        batch = [Metric(key, float(value), now, 0) for key, value in metrics.items() if value is not None]
        self.tracker.log(self.tracker.parent_run_id, metrics=batch)

    def log_decision(self, reason: str, numbers: Mapping[str, float | None], files: Sequence[Path]) -> None:
        """Log a promotion's outcome, on the child and the parent: tag, metrics and files."""
        now = now_ms()
        metrics = [Metric(metric_name(key), value, now, 0) for key, value in numbers.items() if value is not None]
        for run_id in (self.run_id, self.tracker.parent_run_id):
            self.tracker.log(run_id, metrics=metrics, tags=[RunTag("promotion", reason[:4000])])
        self._log_files(files)


def _params(flat: Mapping[str, Any]) -> list[Param]:
    return [Param(key, str(value)[:6000]) for key, value in flat.items()]


def now_ms() -> int:
    """The time, in milliseconds since 1970, as MLflow has it."""
    return int(time.time() * 1000)


def _number(value: Any) -> bool:
    return isinstance(value, int | float)


def metric_name(key: str) -> str:
    """MLflow allows letters, digits, ``_ - . / :`` and spaces."""
    return re.sub(r"[^A-Za-z0-9_\-./: ]", "_", key)


def _curve(path: Path, now: int) -> list[Metric]:
    """A stage's curve as metrics by step: columns ``step, metric, value``, or one column per figure and ``fit``."""
    if not path.is_file():
        return []
    frame = read_parquet(path)
    if "fit" in frame.columns:
        frame = frame.unpivot(index=["fit", "step"], variable_name="figure")
        frame = frame.select("step", "value", metric=pl.format("{}_fit_{}", "figure", "fit"))
    rows = frame.drop_nulls("value").select("metric", "value", "step").iter_rows()
    return [Metric(name, float(value), now, int(step)) for name, value, step in rows]


def _outside_datasets(inputs: Mapping[str, str]) -> list[DatasetInput]:
    """One dataset per source, such as ``movielens``, whose digest covers all of its files."""
    sources = sorted({name.split("/")[0] for name in inputs} - {"accelerate_config", "model"})
    return [
        _dataset(source, sha256_json({k: v for k, v in inputs.items() if k.split("/")[0] == source})[:32], source)
        for source in sources
    ]


def _dataset(name: str, digest: str, context: str) -> DatasetInput:
    # MLflow keeps 36 characters of a digest; a fingerprint has 32
    dataset = Dataset(name=name, digest=digest, source_type="local", source=json.dumps({"name": name}))
    return DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])


@contextmanager
def stage_run(
    tracker: Tracker, stage: str, tags: Mapping[str, str], *, name: str = "", params: Mapping[str, Any] | None = None
) -> Iterator[StageRun]:
    """Open the child run of a stage; it ends as FAILED when the block raises.

    Args:
        tracker: store and parent.
        stage: its name, also a tag.
        tags: of the child.
        name: in MLflow's page; empty: the stage's.
        params: flat settings of the stage.
    """
    client = tracker.client()
    run = client.create_run(
        tracker.experiment_id,
        run_name=name or stage,
        tags={PARENT: tracker.parent_run_id, "stage": stage, **tags},
    )
    tracker.log(run.info.run_id, params=_params(params or {}))
    try:
        yield StageRun(tracker, run.info.run_id)
    except BaseException as error:
        close_all_the_same(tracker, run.info.run_id, error)
        raise
    client.set_terminated(run.info.run_id)
