"""Prefect task for the rank stage."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.session import Session, logged_stage, worth_a_retry
from tripletune.stages import run_rank


@task(
    name="rank",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    tags=["tripletune"],
)
def rank_task(session: Session) -> Path:
    """Answer the valid and test prompts, tuned and untuned.

    Reuse is the artifact store's job: Prefect's cache knows nothing of edited modules or deleted files.
    """
    return logged_stage(session, "rank", lambda child: run_rank(session.paths, session.config))
