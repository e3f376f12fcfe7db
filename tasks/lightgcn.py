"""Prefect task for the lightgcn stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_lightgcn


@stage_task(name="lightgcn")
def lightgcn_task(session: Session) -> Path:
    """Train the specialist that ranks: LightGCN."""
    return logged_stage(session, "lightgcn", lambda child: run_lightgcn(session.paths, session.config))
