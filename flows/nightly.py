"""Nightly regeneration: ratings and credits in; shards, adapter, metrics and a champion out."""

from __future__ import annotations

from prefect import flow
from prefect.states import State
from prefect.task_runners import ThreadPoolTaskRunner

from flows import TIMEOUT_SECONDS
from tasks.page import name_flow_run
from tasks.preflight import preflight
from tasks.session import open_session
from tasks.stages import run_part


@flow(
    name="tripletune-nightly",
    flow_run_name=name_flow_run,
    timeout_seconds=TIMEOUT_SECONDS,
    task_runner=ThreadPoolTaskRunner(max_workers=2),
)
def nightly(
    config: str = "configs/smoke.toml",
    movielens: str = "",
    imdb: str = "",
    artifacts: str = "artifacts",
    set: list[str] | None = None,
) -> str | State[str]:
    """Run every stage whose output is not there yet, and return the run's name; a failed state where a check of
    ``tripletune doctor`` says that the run would be lost.

    Args:
        config: a preset in TOML.
        movielens: a MovieLens zip or folder; empty takes the config's, or the synthetic release.
        imdb: a folder with IMDb's four dumps; empty takes the config's, or none.
        artifacts: the artifact root.
        set: settings in place of the config's, each as ``section.key=value``.
    """
    if failed := preflight(config, movielens, imdb, artifacts, set):
        return failed
    with open_session(config, movielens=movielens, imdb=imdb, artifacts=artifacts, overrides=set or ()) as session:
        for part in ("shards", "finetune", "rank"):
            run_part(session, part)
        return session.run


if __name__ == "__main__":
    nightly()
