"""Prefect task for the retrieve stage."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.session import Session, logged_stage, worth_a_retry
from tripletune.stages import run_retrieve


@task(
    name="retrieve",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    tags=["tripletune"],
)
def retrieve_task(session: Session) -> Path:
    """Candidates, hint lists, similar viewers and chosen triples.

    Reuse is the artifact store's job: Prefect's cache knows nothing of edited modules or deleted files.
    """
    return logged_stage(session, "retrieve", lambda child: run_retrieve(session.paths, session.config))
