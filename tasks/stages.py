"""Prefect tasks of all stages, made from the registry; evaluate, which also fills pages, has a module of its own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from prefect import Task

from tasks.evaluate import run_and_publish
from tasks.session import Session, logged_stage, stage_task
from tasks.workers import map_shards
from tripletune.pipeline.registry import STAGES
from tripletune.pipeline.stage import Stage
from tripletune.tracking import StageRun


def _more(stage: Stage, session: Session, child: StageRun) -> dict[str, Any]:
    """What a stage's function takes besides paths and config."""
    if stage.never_reused:
        return {"run": session.run, "child": child}
    if stage.name == "generate":
        return {"map_jobs": functools.partial(map_shards, session.config.workers)}
    if stage.name == "finetune":
        return {"on_log": child.log_curve}
    return {}


def _make_task(stage: Stage) -> Task[[Session], Path]:
    def work(session: Session) -> Path:
        if stage.name == "evaluate":
            return run_and_publish(session)
        return logged_stage(
            session,
            stage.name,
            lambda child: stage.run(session.paths, session.config, **_more(stage, session, child)),
        )

    work.__doc__ = stage.run.__doc__
    return stage_task(name=stage.name, **stage.task)(work)


TASKS = {stage.name: _make_task(stage) for stage in STAGES}
"""By stage; each takes the session and returns the stage's folder."""
