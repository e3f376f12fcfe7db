"""Prefect task for the ingest stage."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.session import Session, logged_stage, worth_a_retry
from tripletune.stages import run_ingest


@task(
    name="ingest",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    tags=["tripletune"],
)
def ingest_task(session: Session) -> Path:
    """Read the release into typed Parquet, bad rows aside.

    Reuse is the artifact store's job: Prefect's cache knows nothing of edited modules or deleted files.
    """
    return logged_stage(session, "ingest", lambda child: run_ingest(session.paths, session.config))
