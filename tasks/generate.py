"""Prefect task for the generate stage."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.session import Session, logged_stage, worth_a_retry
from tripletune.stages import run_generate


@task(
    name="generate",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    tags=["tripletune"],
)
def generate_task(session: Session) -> Path:
    """Write and audit the prompt shards. A retry goes on at the last finished shard.

    Reuse is the artifact store's job: Prefect's cache knows nothing of edited modules or deleted files.
    """
    return logged_stage(session, "generate", lambda child: run_generate(session.paths, session.config))
