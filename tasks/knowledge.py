"""Prefect task for the knowledge stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_knowledge


@stage_task(name="knowledge")
def knowledge_task(session: Session) -> Path:
    """Build the film knowledge graph."""
    return logged_stage(session, "knowledge", lambda child: run_knowledge(session.paths, session.config))
