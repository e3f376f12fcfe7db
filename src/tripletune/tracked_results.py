"""Results of several runs in MLflow: those of an ablation set on a run of its own, a comparison's with each run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from tripletune.config import RunConfig
from tripletune.errors import MissingArtifactError
from tripletune.store.runs import RunRecord, tracking_uri
from tripletune.tracking import (
    DESCRIPTION,
    MAX_TAG,
    NO_SUCH_RUN,
    PARENT,
    Tracker,
    close_all_the_same,
    metric_name,
    now_ms,
    start_run,
)


@contextmanager
def ablation_run(
    settings: RunConfig, root: Path, name: str, tags: Mapping[str, str], member: RunRecord | None = None
) -> Iterator[Tracker]:
    """The run of an ablation set, parent of its members' runs; it ends as FAILED when the block raises.

    Args:
        settings: of the base; they become parameters.
        root: the artifact root.
        name: of the set, in the page.
        tags: of the run.
        member: a run of the set that was begun earlier, whose parent is opened once more; None: a new parent.
    """
    again = member and member.model_copy(update={"mlflow_run_id": member.tags[PARENT]})
    tracker = start_run(settings.tracking, root, name, params=settings.flat(), tags=tags, again=again)
    try:
        yield tracker
    except BaseException as error:
        close_all_the_same(tracker, tracker.parent_run_id, error)
        raise
    tracker.client().set_terminated(tracker.parent_run_id)


def log_ablation(tracker: Tracker, files: Sequence[Path], differences: Mapping[str, float]) -> None:
    """Log the results of an ablation set on its own run.

    Args:
        tracker: whose parent run is the set's.
        files: become artifacts.
        differences: of each member from the base, by name.
    """
    at = now_ms()
    for path in files:
        tracker.client().log_artifact(tracker.parent_run_id, str(path))
    tracker.log(
        tracker.parent_run_id,
        metrics=[Metric(metric_name(key), value, at, 0) for key, value in differences.items()],
    )


def log_comparison(record: RunRecord, root: Path, baseline: str, files: Sequence[Path]) -> str:
    """Log a comparison's files on the parent run of a compared run, in the artifact folder ``compared/<baseline>``.

    Returns:
        Where they are, for people.

    Raises:
        MissingArtifactError: the run's MLflow store has no such run, as where another machine has its SQLite file.
    """
    settings = record.settings().tracking
    uri = tracking_uri(settings, root)
    client, folder = MlflowClient(uri), f"compared/{baseline.replace('/', '_')}"
    try:
        for path in files:
            client.log_artifact(record.mlflow_run_id, str(path), folder)
    except MlflowException as error:
        if error.error_code not in NO_SUCH_RUN:
            raise
        raise MissingArtifactError(
            f"MLflow's store {uri} has no run {record.mlflow_run_id!r} of {record.name}; set MLFLOW_TRACKING_URI to "
            "the store that the run was logged to"
        ) from None
    add_link(client, record, f"compared with {baseline}", f"{folder}/comparison.html")
    return f"{folder} of run {record.mlflow_run_id}"


def add_link(client: MlflowClient, record: RunRecord, label: str, path: str) -> None:
    """Add a link to an artifact to a run's description, once."""
    link = f"[{label}]({Tracker('', record.mlflow_experiment_id, record.mlflow_run_id).link(path)})"
    note = client.get_run(record.mlflow_run_id).data.tags.get(DESCRIPTION, "")
    if link not in note:
        client.set_tag(record.mlflow_run_id, DESCRIPTION, f"{note}\n{link}\n"[-MAX_TAG:])
