"""Prefect task for the generate stage."""

from __future__ import annotations

import functools
from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tasks.workers import map_shards
from tripletune.pipeline.stages import run_generate


@stage_task(name="generate", retries=2)
def generate_task(session: Session) -> Path:
    """Have the workers write the prompt shards, and audit them. A retry goes on at the last finished shard."""
    map_jobs = functools.partial(map_shards, session.config.workers)
    return logged_stage(session, "generate", lambda child: run_generate(session.paths, session.config, map_jobs))
