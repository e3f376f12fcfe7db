"""Prefect task for the sasrec stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_sasrec


@stage_task(name="sasrec")
def sasrec_task(session: Session) -> Path:
    """Train the retriever that reads likes in their order: SASRec."""
    return logged_stage(session, "sasrec", lambda child: run_sasrec(session.paths, session.config))
