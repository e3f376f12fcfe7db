"""Task of the probe stage; publishes the headline on the parent run."""

from __future__ import annotations

from pathlib import Path

from tasks.session import Session, logged_stage
from tripletune.pipeline.stages import run_probe
from tripletune.probe.summary import headline
from tripletune.schemas.probe import PROBED_NAME
from tripletune.store.read import read_parquet
from tripletune.tracking import StageRun


def run_and_publish(session: Session) -> Path:
    """Run the stage; its headline goes to the parent run."""

    def work(child: StageRun) -> Path:
        folder = run_probe(session.paths, session.config)
        child.log_headline(headline(read_parquet(folder / PROBED_NAME)))
        return folder

    return logged_stage(session, "probe", work)
