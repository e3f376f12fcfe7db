"""Prefect task for the rank stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_rank


@stage_task(name="rank")
def rank_task(session: Session) -> Path:
    """Answer the valid and test prompts, tuned and untuned."""
    return logged_stage(session, "rank", lambda child: run_rank(session.paths, session.config))
