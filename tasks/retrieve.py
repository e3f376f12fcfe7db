"""Prefect task for the retrieve stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_retrieve


@stage_task(name="retrieve")
def retrieve_task(session: Session) -> Path:
    """Candidates, hint lists, similar viewers and chosen triples."""
    return logged_stage(session, "retrieve", lambda child: run_retrieve(session.paths, session.config))
