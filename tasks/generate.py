"""Prefect task for the generate stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.stages import run_generate


@stage_task(name="generate", retries=2)
def generate_task(session: Session) -> Path:
    """Write and audit the prompt shards. A retry goes on at the last finished shard."""
    return logged_stage(session, "generate", lambda child: run_generate(session.paths, session.config))
