"""Task of the evaluate stage; publishes the headline on the parent run and on Prefect's page."""

from __future__ import annotations

import json
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from tasks.session import Session, logged_stage
from tripletune.cli.inspect import markdown_summary
from tripletune.pipeline.stages import run_evaluate
from tripletune.tracking import StageRun


def run_and_publish(session: Session) -> Path:
    """Run the stage; its headline goes to the parent run and to Prefect's page."""

    def work(child: StageRun) -> Path:
        folder = run_evaluate(session.paths, session.config)
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        # those over all users; the child has the groups as well
        child.log_headline({key: value for key, value in metrics.items() if not key.endswith(("_warm", "_unseen"))})
        return folder

    folder = logged_stage(session, "evaluate", work)
    create_markdown_artifact(markdown_summary(folder), key="tripletune-metrics", description=session.run)
    return folder
