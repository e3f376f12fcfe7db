"""Prefect task for the quality stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_quality


@stage_task(name="quality")
def quality_task(session: Session) -> Path:
    """Measure the shards and compare them with the last night's. Never reused: another night may be the last one."""
    return logged_stage(
        session,
        "quality",
        lambda child: run_quality(session.paths, session.config, run=session.run, child=child),
    )
