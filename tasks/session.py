"""A run as all of its tasks see it: config, fingerprints, MLflow parent and the file under ``artifacts/runs``."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run

import tripletune
from tripletune.config import RunConfig, load_config
from tripletune.errors import UserError
from tripletune.paths import RunPaths
from tripletune.runs import RunRecord, new_run_name, update_run, utc_now, write_run
from tripletune.stages import resolve
from tripletune.tracking import StageRun, Tracker, config_hash, end_run, stage_run, start_run

CHECKOUT = Path(__file__).parents[1]


def worth_a_retry(task: object, run: object, state: object) -> bool:
    """Retry what may pass the second time; what the user has to repair will not."""
    try:
        state.result()  # type: ignore[attr-defined]
    except UserError:
        return False
    except Exception:
        return True
    return True


stage_task = functools.partial(
    task,
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    tags=["tripletune"],
)
"""Prefect's decorator with what stages share. No Prefect cache: reuse is the artifact store's job, because Prefect
knows nothing of edited modules or deleted files, and would replay a path whose folder is gone."""


@dataclass(frozen=True, slots=True)
class Session:
    """Plain data, so that it can travel to any worker."""

    run: str
    config: RunConfig
    paths: RunPaths
    tracker: Tracker
    tags: dict[str, str]


@contextmanager
def open_session(config: str, *, movielens: str, imdb: str, artifacts: str) -> Iterator[Session]:
    """Read the config, resolve every fingerprint, open the MLflow parent; at the end, say how it went.

    Relative paths are taken from the working directory, which a deployment sets to the checkout.

    Raises:
        UserError: config or input is wrong; nothing was started.
    """
    require_one_checkout()
    settings = load_config(Path(config), movielens=movielens, imdb=imdb)
    root = Path(artifacts)
    paths = resolve(settings, root)
    name, flat = new_run_name(root, settings.dataset), settings.flat()
    tags = _tags() | {"config.sha256": config_hash(flat), "run": name, "dataset": settings.dataset}
    fingerprints = {f"fingerprint.{stage}": value for stage, value in paths.fingerprints.items()}
    tracker = start_run(settings.tracking, root, name, params=flat, tags=tags | fingerprints)
    record = RunRecord(
        name=name,
        dataset=settings.dataset,
        status="running",
        started=utc_now(),
        config=settings.model_dump(mode="json"),
        fingerprints=dict(paths.fingerprints),
        mlflow_run_id=tracker.parent_run_id,
        mlflow_experiment_id=tracker.experiment_id,
    )
    write_run(root, record)
    get_run_logger().info("run %s: outputs under %s", name, root / settings.dataset)
    try:
        yield Session(name, settings, paths, tracker, tags)
    except BaseException as error:
        update_run(root, name, status="failed", finished=utc_now(), error=str(error).splitlines()[0][:500])
        end_run(tracker, failed=True)
        raise
    update_run(root, name, status="completed", finished=utc_now())
    end_run(tracker, failed=False)


def logged_stage(session: Session, stage: str, work: Callable[[StageRun], Path]) -> Path:
    """Run one stage inside its MLflow child, note it in the run's file and log one line."""
    reused = stage in session.paths.fingerprints and session.paths.is_done(stage)
    with stage_run(session.tracker, stage, session.tags) as child:
        folder = work(child)
        if stage in session.paths.fingerprints:
            child.log_output(session.paths, stage, reused=reused)
    update_run(session.paths.root, session.run, stage=(stage, "reused" if reused else "made"))
    get_run_logger().info("%s %s: %s", stage, "reused" if reused else "made", folder)
    return folder


def require_one_checkout() -> None:
    """Refuse to run the flows of one checkout with the library of another."""
    library = Path(tripletune.__file__).resolve()
    if not library.is_relative_to(CHECKOUT):
        raise UserError(
            f"flows/ runs from {CHECKOUT} but tripletune is imported from {library.parent}; "
            f"start the worker with {CHECKOUT}/.venv, or run `make install` there"
        )


def _tags() -> dict[str, str]:
    tags = {
        "prefect.flow_run_id": flow_run.id,
        "prefect.flow_run_url": flow_run.ui_url,
        "prefect.deployment": deployment.name,
        "git.commit": _git_commit(),
        "user": os.environ.get("USER", ""),
    }
    return {key: str(value) for key, value in tags.items() if value}


def _git_commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
