"""Prefect task for the evaluate stage."""

from __future__ import annotations

import json
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.session import Session, logged_stage, worth_a_retry
from tripletune.stages import run_evaluate
from tripletune.tracking import StageRun
from tripletune.views import markdown_summary


@task(
    name="evaluate",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    tags=["tripletune"],
)
def evaluate_task(session: Session) -> Path:
    """Metrics, significance and the report; the headline goes to the parent run and to Prefect's page."""

    def work(child: StageRun) -> Path:
        folder = run_evaluate(session.paths, session.config)
        child.log_headline(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        return folder

    folder = logged_stage(session, "evaluate", work)
    create_markdown_artifact(markdown_summary(folder), key="tripletune-metrics", description=session.run)
    return folder
