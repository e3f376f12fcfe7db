"""Prefect task for the promote stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_promote


@stage_task(name="promote", retries=0)
def promote_task(session: Session) -> Path:
    """Move the champion alias to tonight's adapter, or say why not. Never reused, and never retried."""
    return logged_stage(
        session,
        "promote",
        lambda child: run_promote(session.paths, session.config, run=session.run, child=child),
    )
