"""Session of a run, shared by its tasks: config, fingerprints, MLflow parent and the run's file."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL

import tripletune
from tasks.lines import drop_echoes
from tasks.page import link_run, progress_on_page, show_verdict
from tripletune.config import RunConfig, WorkersConfig
from tripletune.config.overrides import only_store
from tripletune.config.presets import load_config
from tripletune.dead_runs import close_dead_runs
from tripletune.errors import ConfigError, RankingCrash, TrainingCrash, UserError, as_user_error
from tripletune.pipeline import stage_lines
from tripletune.pipeline.handover import go_on
from tripletune.pipeline.resolve import resolve
from tripletune.pipeline.stages import require_one_answer
from tripletune.processes.guardian import guard_this_process
from tripletune.processes.lifeline import end_with_parent
from tripletune.store.champion import read_decision
from tripletune.store.meter import Meter
from tripletune.store.paths import RunPaths, whoami
from tripletune.store.runs import local_run, quality_folder, update_run
from tripletune.summary import describe_unevaluated, summarise_run
from tripletune.tracking import StageRun, Tracker, recorded_run, stage_run

CHECKOUT = Path(__file__).parents[1]

log = logging.getLogger("tripletune.tasks")
"""Below ``tripletune``, whose lines Prefect's page shows."""

drop_echoes()


def worth_a_retry(task: object, run: object, state: object) -> bool:
    """Whether a failed task is retried: any error but those that the user has to repair."""
    try:
        state.result()  # type: ignore[attr-defined]
    except (TrainingCrash, RankingCrash):
        return True
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
"""Prefect's decorator with the options that stages share. No Prefect cache: reuse is the artifact store's job, because
Prefect does not see edited modules or deleted files, and would replay a path whose folder is gone."""


@dataclass(frozen=True, slots=True)
class Session:
    """Plain data, so that it can travel to any worker."""

    run: str
    config: RunConfig
    paths: RunPaths
    tracker: Tracker
    tags: dict[str, str]


@contextmanager
def open_session(
    config: str,
    *,
    movielens: str,
    imdb: str,
    artifacts: str,
    overrides: Sequence[str] = (),
    run: str = "",
    part: str = "shards",
    belongs: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Session]:
    """Read the config, resolve every fingerprint, close dead runs, open the MLflow parent; at the end, record how the
    run went.

    Relative paths are taken from the working directory, which a deployment sets to the checkout.

    Args:
        config, movielens, imdb, artifacts: as in ``nightly``.
        overrides: settings in place of the config's, each as ``section.key=value``; with ``run`` of ``[store]`` alone.
        run: name of a run to go on with, whose recorded settings then hold; of ``config`` only ``[store]`` is read,
            and no input of an earlier part has to be here. Empty: a new run.
        part: the first part that the flow runs.
        belongs: further tags of the run, in MLflow and in its file.

    Raises:
        UserError: config or input is wrong; nothing was started.
    """
    require_one_checkout()
    _tie_to_worker()
    settings = load_config(Path(config), overrides, movielens=movielens, imdb=imdb)
    again, tags = None, _tags()
    if run:
        only_store(overrides)
        again, settings, paths = go_on(run, part, settings.store, Path(artifacts).expanduser())
    else:
        require_one_answer(settings)
        require_workers(settings.workers)
        paths = resolve(settings, Path(artifacts).expanduser())
    close_dead_runs(paths.root)
    with recorded_run(settings, paths, tags, again, overrides=overrides, belongs=belongs) as (name, tracker):
        log.info("run %s of %s begins, from %s", name, settings.dataset, config if not run else f"run {run}")
        session = Session(name, settings, paths, tracker, tags | {"run": name})
        yield session
        _publish_summary(session)


@functools.cache
def _tie_to_worker() -> None:
    """Let nothing of a deployed run outlive its worker; once for each process, whatever the number of sessions."""
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # Prefect's engine was started for one flow run, by a worker
        guard_this_process()
        end_with_parent()


def logged_stage(session: Session, stage: str, work: Callable[[StageRun], Path]) -> Path:
    """Run one stage inside its MLflow child, note in the run's file how it ended, and log a line at its start and end.

    Raises:
        UserError: in place of the error of a full disk.
    """
    paths = session.paths
    reusable = stage in paths.fingerprints
    reused = reusable and paths.is_done(stage)
    if not reused:
        log.info("%s", stage_lines.starting(stage, paths))
    began, meter = time.perf_counter(), None if reusable else Meter()  # of the others the manifest says it
    try:
        flat = session.config.flat()
        params = {key: value for key, value in flat.items() if key.split(".")[0] == stage}
        name = _child_name(stage, session.config)
        with stage_run(session.tracker, stage, session.tags, name=name, params=params) as child:
            with meter or nullcontext(), progress_on_page():
                folder = work(child)
            if reusable:
                # it may also have waited for another process that made it
                reused = reused or paths.manifest(stage)["made_by"] != whoami()
                child.log_output(paths, stage, reused=reused)
                paths.share(stage)
    except BaseException as error:
        mistake = as_user_error(error)
        with suppress(OSError):  # a full disk takes no note
            update_run(paths.root, session.run, stage=(stage, "failed"))
        log.error("%s", stage_lines.failing(stage, time.perf_counter() - began, mistake or error))
        if mistake and mistake is not error:
            raise mistake from error
        raise
    update_run(paths.root, session.run, stage=(stage, "reused" if reused else "made"))
    if meter:
        log.info("%s", stage_lines.ending_unkept(stage, folder, meter.seconds, meter.peak_bytes))
    else:
        log.info("%s", stage_lines.ending(stage, paths, reused=reused))
    return folder


def _publish_summary(session: Session) -> None:
    """Write the page of an evaluated run, and say in MLflow what every run was and showed."""
    root, tracker = session.paths.root, session.tracker
    record = local_run(root, session.run)
    pages, files = {}, {}
    if "evaluate" in record.stages:
        summary = summarise_run(record, root)
        tracker.client().log_artifact(tracker.parent_run_id, str(summary.page))
        text, pages["report"], files["report"] = summary.markdown(), summary.page.name, summary.page
    else:
        text = describe_unevaluated(record)
    if "quality" in record.stages:
        label = "quality of the shards"
        pages[label] = "quality.html"
        files[label] = quality_folder(root, record.dataset, record.name) / pages[label]
    tracker.describe(text, pages)
    link_run(tracker, text, pages, files)
    if decision := read_decision(root, record.dataset, record.name):
        show_verdict(decision, record.name)


def _child_name(stage: str, config: RunConfig) -> str:
    """What a stage's child run is called in MLflow: a training by its model and objective."""
    tuned = config.finetune
    return f"{stage} {Path(tuned.model).name} {tuned.objective}" if stage == "finetune" else stage


def require_one_checkout() -> None:
    """Refuse to run the flows of one checkout with the library of another."""
    library = Path(tripletune.__file__).resolve()
    if not library.is_relative_to(CHECKOUT):
        raise UserError(
            f"flows/ runs from {CHECKOUT} but tripletune is imported from {library.parent}; "
            f"start the worker with {CHECKOUT}/.venv, or run `make install` there"
        )


def require_workers(workers: WorkersConfig) -> None:
    """Refuse unusable workers before any training, because shards come late in a run.

    Raises:
        ConfigError: their library is not installed, nothing answers at the address of the cluster, or its workers
            cannot reach the Prefect server.
    """
    package = {"dask": "prefect_dask", "ray": "prefect_ray"}.get(workers.kind)
    if package and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"workers.kind = {workers.kind!r} needs {package.replace('_', '-')}, which is not installed; "
            f"pip install -e '.[{workers.kind}]' -c constraints.txt, or set it to 'threads' or 'processes'"
        )
    if workers.address:
        try:
            where = urlsplit(workers.address if "://" in workers.address else f"//{workers.address}")
            socket.create_connection((where.hostname or "", where.port or 0), timeout=10).close()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"workers.address = {workers.address!r}: no {workers.kind} cluster answers there ({error}); start it, "
                "or leave the address empty for workers on this machine"
            ) from None
        if not _is_here(where.hostname) and _is_here(urlsplit(PREFECT_API_URL.value() or "").hostname):
            raise ConfigError(
                f"workers.address = {workers.address!r} is another machine, and its workers cannot reach the Prefect "
                "server of this one; set PREFECT_API_URL to an address that they reach"
            )


def _is_here(host: str | None) -> bool:
    """Whether a host is this machine's loopback; None, the temporary server without an address yet, counts as one."""
    if host in (None, "localhost"):
        return True
    try:
        return ip_address(str(host)).is_loopback
    except ValueError:
        return False


def _tags() -> dict[str, str]:
    commit = _git("rev-parse", "HEAD")
    tags = {
        "prefect.flow_run_id": flow_run.id,
        "prefect.flow_run_url": flow_run.ui_url,
        "prefect.deployment": deployment.name,
        "git.commit": commit,
        # without a commit it would say nothing
        "git.dirty": str(bool(_git("status", "--porcelain"))).lower() if commit else "",
        "user": os.environ.get("USER", ""),
    }
    return {key: str(value) for key, value in tags.items() if value}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip()
