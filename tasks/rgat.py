"""Prefect task for the rgat stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_rgat


@stage_task(name="rgat")
def rgat_task(session: Session) -> Path:
    """Train the specialist that explains: relational graph attention."""
    return logged_stage(session, "rgat", lambda child: run_rgat(session.paths, session.config))
