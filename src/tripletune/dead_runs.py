"""Close the runs that were killed before they could say so: their files, and in MLflow they and their stages."""

from __future__ import annotations

import logging
from pathlib import Path

from tripletune.config import TrackingConfig
from tripletune.errors import UserError, reason_of
from tripletune.store.alive import taken_if_dead
from tripletune.store.runs import RunRecord, list_runs, share_run, tracking_uri, update_run, utc_now
from tripletune.tracking import Tracker

REASON = "its process was killed, or the machine stopped, before the run could end"

log = logging.getLogger(__name__)


def close_dead_runs(root: Path) -> list[str]:
    """Mark as killed each run that stands as running and whose process is gone; never one of a live process.

    A run that MLflow cannot be told of stays as it is, with a warning, for the next try.

    Args:
        root: the artifact root.

    Returns:
        Names of the closed runs.
    """
    closed = []
    for record in list_runs(root):
        with taken_if_dead(root, record) as is_dead:
            if is_dead and _close_in_mlflow(root, record):
                update_run(root, record.name, status="killed", finished=utc_now(), error=REASON)
                log.warning("run %s is closed as killed: %s", record.name, REASON)
                _share(root, record)
                closed.append(record.name)
    return closed


def _share(root: Path, record: RunRecord) -> None:
    """Push the closed run to its shared store, where it has one; trouble there is a warning."""
    try:
        share_run(root, record.name, record.paths(root).shared)
    except UserError as error:
        log.warning("the shared store does not know that %s was killed: %s", record.name, reason_of(error))


def _close_in_mlflow(root: Path, record: RunRecord) -> bool:
    """Whether MLflow has the run closed, or does not have it at all, as where its store was moved."""
    try:
        uri = tracking_uri(TrackingConfig.model_validate(record.config.get("tracking", {})), root)
        tracker = Tracker(uri, record.mlflow_experiment_id, record.mlflow_run_id)
        if tracker.is_running():
            for run_id in (*tracker.open_stages(), tracker.parent_run_id):
                tracker.close(run_id, REASON)
    except Exception as error:
        log.warning("run %s is dead and cannot be closed in MLflow now: %s", record.name, reason_of(error))
        return False
    return True
