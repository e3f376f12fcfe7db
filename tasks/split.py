"""Prefect task for the split stage."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.session import Session, logged_stage, worth_a_retry
from tripletune.stages import run_split


@task(
    name="split",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    tags=["tripletune"],
)
def split_task(session: Session) -> Path:
    """Label the ratings and bucket them by viewer.

    Reuse is the artifact store's job: Prefect's cache knows nothing of edited modules or deleted files.
    """
    return logged_stage(session, "split", lambda child: run_split(session.paths, session.config))
