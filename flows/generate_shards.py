"""From ratings to audited prompt shards, without the language model."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.ease import ease_task
from tasks.generate import generate_task
from tasks.ingest import ingest_task
from tasks.knowledge import knowledge_task
from tasks.lightgcn import lightgcn_task
from tasks.quality import quality_task
from tasks.retrieve import retrieve_task
from tasks.rgat import rgat_task
from tasks.sasrec import sasrec_task
from tasks.session import Session, open_session
from tasks.split import split_task

TRAIN = {"rgat": rgat_task, "lightgcn": lightgcn_task, "sasrec": sasrec_task, "ease": ease_task}


def make_shards(session: Session) -> None:
    """The stages up to generate and a look at what it made; what learns from likes trains at once, as far as there are
    workers."""
    ingest_task(session)
    split_task(session)
    knowledge_task(session)
    for training in [TRAIN[stage].submit(session) for stage in session.config.trained_stages]:
        training.result()
    retrieve_task(session)
    generate_task(session)
    quality_task(session)


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
