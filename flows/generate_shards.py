"""From ratings to audited prompt shards, without the language model."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.session import Session, open_session
from tasks.stages import TASKS


def make_shards(session: Session) -> None:
    """Run the stages up to generate, and measure the shards; models train at once, as far as there are workers."""
    for stage in ("ingest", "split", "knowledge"):
        TASKS[stage](session)
    for training in [TASKS[stage].submit(session) for stage in session.config.trained_stages]:
        training.result()
    for stage in ("retrieve", "generate", "quality"):
        TASKS[stage](session)


@flow(name="tripletune-generate-shards", task_runner=ThreadPoolTaskRunner(max_workers=2))
def generate_shards(
    config: str = "configs/smoke.toml", movielens: str = "", imdb: str = "", artifacts: str = "artifacts"
) -> str:
    """Make the shards and return the run's name; arguments as in ``nightly``."""
    with open_session(config, movielens=movielens, imdb=imdb, artifacts=artifacts) as session:
        make_shards(session)
        return session.run


if __name__ == "__main__":
    generate_shards()
