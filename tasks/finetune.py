"""Prefect task for the finetune stage."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage, stage_task
from tripletune.pipeline.stages import run_finetune


@stage_task(name="finetune", retry_delay_seconds=30, tags=["tripletune", "gpu"])
def finetune_task(session: Session) -> Path:
    """LoRA-tune the language model in a subprocess, its curve live in MLflow.

    The deadline is ``finetune.timeout_minutes``: a submitted sync task ignores Prefect's own timeout. The ``gpu`` tag
    takes a concurrency limit, so that two nights never share the cards.
    """
    return logged_stage(session, "finetune", lambda child: run_finetune(session.paths, session.config, child.log_curve))
