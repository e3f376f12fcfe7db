"""From ratings to audited prompt shards, without the language model."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows import TIMEOUT_SECONDS
from tasks.page import name_flow_run
from tasks.session import open_session
from tasks.stages import run_part


@flow(
    name="tripletune-generate-shards",
    flow_run_name=name_flow_run,
    timeout_seconds=TIMEOUT_SECONDS,
    task_runner=ThreadPoolTaskRunner(max_workers=2),
)
def generate_shards(
    config: str = "configs/smoke.toml",
    movielens: str = "",
    imdb: str = "",
    artifacts: str = "artifacts",
    set: list[str] | None = None,
) -> str:
    """Make the shards and return the run's name; arguments as in ``nightly``."""
    with open_session(config, movielens=movielens, imdb=imdb, artifacts=artifacts, overrides=set or ()) as session:
        run_part(session, "shards")
        return session.run


if __name__ == "__main__":
    generate_shards()
