"""Prefect task for the ease stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_ease


@stage_task(name="ease")
def ease_task(session: Session) -> Path:
    """Fit the retriever in closed form: EASE."""
    return logged_stage(session, "ease", lambda child: run_ease(session.paths, session.config))
