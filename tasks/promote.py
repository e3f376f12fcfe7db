"""Prefect task for the promote stage."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.session import Session, logged_stage
from tripletune.stages import run_promote


@task(name="promote", cache_policy=NO_CACHE, tags=["tripletune"])
def promote_task(session: Session) -> Path:
    """Move the champion alias to tonight's adapter, or say why not. Never reused, and never retried."""
    return logged_stage(
        session,
        "promote",
        lambda child: run_promote(session.paths, session.config, run=session.run, child=child),
    )
