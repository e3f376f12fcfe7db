"""Prefect task for the split stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_split


@stage_task(name="split")
def split_task(session: Session) -> Path:
    """Label the ratings and bucket them by viewer."""
    return logged_stage(session, "split", lambda child: run_split(session.paths, session.config))
