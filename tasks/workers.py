"""Distribute shards over workers: threads, processes, Dask or Ray, through Prefect's task runners.

The runner is chosen by the config and entered here, inside the generate task, so that a local cluster lives as long as
the writing of shards does. It runs task runs of the flow, each with a few shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed, State
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from tasks.session import CHECKOUT, stage_task
from tripletune.config import WorkersConfig
from tripletune.errors import UserError
from tripletune.progress import Progress
from tripletune.prompts.shards import ShardJob, WriteShard

TASKS_PER_WORKER = 4
"""A task costs Prefect up to 90 ms; a few more tasks than workers balance their load."""


# without the stages' tag: generate waits for these tasks, and a concurrency limit on the tag must not block them
@stage_task(name="write-shards", tags=[], task_run_name="write-shards-{jobs[0].number}")
def write_shards_task(write: WriteShard, jobs: Sequence[ShardJob]) -> State[Any] | None:
    """Write these shards; finished ones stay as they are."""
    try:
        for job in jobs:
            write(job)
    except UserError as error:
        # returned, not raised: a traceback from each worker would bury the one line for the user
        return Failed(message=str(error), data=error)
    return None


def map_shards(workers: WorkersConfig, write: WriteShard, jobs: Sequence[ShardJob]) -> None:
    """Call ``write`` for each job on the workers of the config, and return when all are done.

    A lost Dask or Ray worker's tasks go to the others. A lost process breaks its pool; the error makes Prefect retry
    the generate task, which continues with the shards that are missing.

    Raises:
        UserError: raised by a worker.
    """
    num_tasks = min(len(jobs), TASKS_PER_WORKER * workers.count)
    progress = Progress("prompts", num_tasks, unit="parts")
    with _environment(workers), _one_server(), _runner(workers) as runner, progress:
        futures = [
            runner.submit(write_shards_task, {"write": write, "jobs": jobs[first::num_tasks]})
            for first in range(num_tasks)
        ]
        for future in futures:
            future.result()
            progress.advance()


@contextmanager
def _environment(workers: WorkersConfig) -> Iterator[None]:
    """Set environment variables for worker processes of this machine, and restore them afterwards."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    wanted = {
        "PYTHONPATH": os.pathsep.join(paths),
        "POLARS_MAX_THREADS": str(max(1, cores // workers.count)),
        "DASK_LOGGING__DISTRIBUTED": "warning",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if not workers.address:
        # despite its name: without a cluster of several machines, Ray then listens on the loopback address alone
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _one_server() -> Iterator[None]:
    """Workers report to this process's Prefect server; each would else start one of its own."""
    api = str(get_client(sync_client=True).api_url).rstrip("/")
    with temporary_settings({PREFECT_API_URL: api}):
        yield


def _runner(workers: WorkersConfig) -> TaskRunner[Any]:
    count, address = workers.count, workers.address
    if workers.kind == "threads":
        return ThreadPoolTaskRunner(max_workers=count)
    if workers.kind == "processes":
        return ProcessPoolTaskRunner(max_workers=count)
    if workers.kind == "dask":
        from prefect_dask import DaskTaskRunner

        if address:
            return DaskTaskRunner(address=address)
        local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
        # a shard's size is bounded: no worker is restarted for exceeding its share of memory
        return DaskTaskRunner(cluster_kwargs={"n_workers": count, "threads_per_worker": 1, "memory_limit": 0, **local})
    from prefect_ray import RayTaskRunner

    if address:
        return RayTaskRunner(address=address)
    store = 80 << 20  # the least that Ray takes; only paths travel
    init = {"num_cpus": count, "include_dashboard": False, "object_store_memory": store, "log_to_driver": False}
    return RayTaskRunner(init_kwargs=init)
