"""Prefect task for the lightgcn stage."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.session import Session, logged_stage, worth_a_retry
from tripletune.stages import run_lightgcn


@task(
    name="lightgcn",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    tags=["tripletune"],
)
def lightgcn_task(session: Session) -> Path:
    """Train the specialist that ranks: LightGCN.

    Reuse is the artifact store's job: Prefect's cache knows nothing of edited modules or deleted files.
    """
    return logged_stage(session, "lightgcn", lambda child: run_lightgcn(session.paths, session.config))
