"""Prefect tasks of all stages, made from the registry; those that also publish figures have modules of their own."""

from __future__ import annotations

import functools
from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from typing import Any

from prefect import Task

from tasks import evaluate, probe, promote
from tasks.session import Session, logged_stage, stage_task
from tasks.workers import map_shards
from tripletune.pipeline.registry import STAGES
from tripletune.pipeline.stage import Stage
from tripletune.store.runs import ASIDE
from tripletune.tracking import StageRun

_PUBLISHING = {
    "evaluate": evaluate.run_and_publish,
    "probe": probe.run_and_publish,
    "promote": promote.run_and_publish,
}


def _more(stage: Stage, session: Session, child: StageRun) -> dict[str, Any]:
    """Arguments of a stage's function in addition to paths and config."""
    if stage.never_reused:
        return {"run": session.run, "child": child}
    if stage.name == "generate":
        return {"map_jobs": functools.partial(map_shards, session.config.workers)}
    if stage.name == "finetune":
        return {"on_log": child.log_curve}
    return {}


def _make_task(stage: Stage) -> Task[[Session], Path]:
    def work(session: Session) -> Path:
        if stage.name in _PUBLISHING:
            return _PUBLISHING[stage.name](session)
        return logged_stage(
            session,
            stage.name,
            lambda child: stage.run(session.paths, session.config, **_more(stage, session, child)),
        )

    work.__doc__ = stage.help
    return stage_task(name=stage.name, task_run_name=f"{stage.name} {{session.run}}", **stage.task)(work)


def run_part(session: Session, part: str, skip: Collection[str] = ()) -> None:
    """Run the stages of one part of the nightly flow in the registry's order, but those to skip.

    A run as of a day is compared with no other run and never promoted: it skips ``ASIDE`` too. Neighbours that may run
    at once (the models) are submitted together, as far as the flow's task runner has workers.
    """
    left_out = {*skip, *(ASIDE if session.config.ingest.as_of else ())}
    of_part = (stage for stage in STAGES if stage.part == part and stage.name not in left_out)
    needed = [stage for stage in of_part if stage.needed(session.config)]
    for at_once, group in groupby(needed, key=lambda stage: stage.at_once(session.config)):
        if at_once:
            for training in [TASKS[stage.name].submit(session) for stage in group]:
                training.result()
        else:
            for stage in group:
                TASKS[stage.name](session)


TASKS = {stage.name: _make_task(stage) for stage in STAGES}
"""By stage; each takes the session and returns the stage's folder."""
