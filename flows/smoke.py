"""The smoke flow: every stage on a small synthetic release, in minutes, without network or GPU."""

from __future__ import annotations

from prefect import flow

from flows import TIMEOUT_SECONDS
from flows.nightly import nightly


@flow(name="tripletune-smoke", timeout_seconds=TIMEOUT_SECONDS)
def smoke(artifacts: str = "artifacts", config: str = "configs/smoke.toml", set: list[str] | None = None) -> str:
    """Run the nightly flow on the smoke preset and return the run's name; arguments as in ``nightly``."""
    return nightly(config=config, artifacts=artifacts, set=set)


if __name__ == "__main__":
    smoke()
