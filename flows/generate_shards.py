"""From ratings to audited prompt shards, without the language model."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.generate import generate_task
from tasks.ingest import ingest_task
from tasks.knowledge import knowledge_task
from tasks.lightgcn import lightgcn_task
from tasks.retrieve import retrieve_task
from tasks.rgat import rgat_task
from tasks.session import Session, open_session
from tasks.split import split_task


def make_shards(session: Session) -> None:
    """The stages up to generate; both specialists train at once."""
    ingest_task(session)
    split_task(session)
    knowledge_task(session)
    for specialist in [rgat_task.submit(session), lightgcn_task.submit(session)]:
        specialist.result()
    retrieve_task(session)
    generate_task(session)


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
