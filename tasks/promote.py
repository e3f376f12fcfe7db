"""Task of the promote stage; an adapter that stays out is an event on the Prefect server, which alerts build on."""

from __future__ import annotations

from pathlib import Path

from prefect.events import emit_event

from tasks.automations import REFUSED
from tasks.session import Session, logged_stage
from tripletune.pipeline.stages import run_promote
from tripletune.store.champion import read_decision
from tripletune.tracking import StageRun


def run_and_publish(session: Session) -> Path:
    """Run the stage; a refusal becomes an event with the reason."""

    def work(child: StageRun) -> Path:
        return run_promote(session.paths, session.config, run=session.run, child=child)

    folder = logged_stage(session, "promote", work)
    decision = read_decision(session.paths.root, session.paths.dataset, session.run)
    if not decision["promote"]:
        run = {"prefect.resource.id": f"tripletune.run.{session.run}", "prefect.resource.name": session.run}
        emit_event(REFUSED, resource=run | {"tripletune.reason": decision["reason"][:500]})
    return folder
