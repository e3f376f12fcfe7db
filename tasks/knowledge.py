"""Prefect task for the knowledge stage."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.session import Session, logged_stage, worth_a_retry
from tripletune.stages import run_knowledge


@task(
    name="knowledge",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    tags=["tripletune"],
)
def knowledge_task(session: Session) -> Path:
    """Build the film knowledge graph.

    Reuse is the artifact store's job: Prefect's cache knows nothing of edited modules or deleted files.
    """
    return logged_stage(session, "knowledge", lambda child: run_knowledge(session.paths, session.config))
