"""The smoke flow: every stage on a small synthetic release, in minutes, without network or GPU."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows import TIMEOUT_SECONDS
from flows.nightly import nightly
from tasks.page import name_flow_run


@flow(
    name="tripletune-smoke",
    flow_run_name=name_flow_run,
    timeout_seconds=TIMEOUT_SECONDS,
    task_runner=ThreadPoolTaskRunner(max_workers=2),
)
def smoke(artifacts: str = "artifacts", config: str = "configs/smoke.toml", set: list[str] | None = None) -> str:
    """Run the nightly flow on the smoke preset and return the run's name; arguments as in ``nightly``."""
    # its function, not the flow, which would be a run with a page of its own
    return nightly.fn(config=config, artifacts=artifacts, set=set)


if __name__ == "__main__":
    smoke()
