"""Prefect task for the ingest stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_ingest


@stage_task(name="ingest")
def ingest_task(session: Session) -> Path:
    """Read the release into typed Parquet, bad rows aside."""
    return logged_stage(session, "ingest", lambda child: run_ingest(session.paths, session.config))
