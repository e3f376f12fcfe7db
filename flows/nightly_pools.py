"""Nightly regeneration on two machines: shards here, then training and ranking on the pool of the GPU machines."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows import TIMEOUT_SECONDS
from flows.generate_shards import generate_shards
from tasks.deployed import run_deployed
from tasks.page import name_flow_run
from tasks.preflight import preflight


@flow(
    name="tripletune-nightly-pools",
    flow_run_name=name_flow_run,
    timeout_seconds=TIMEOUT_SECONDS,
)
def nightly_pools(
    config: str = "configs/smoke.toml",
    movielens: str = "",
    imdb: str = "",
    artifacts: str = "artifacts",
    set: list[str] | None = None,
) -> str | State[str]:
    """Make the shards, hand them over by the run's name, and return it; arguments as in ``nightly``. First come the
    checks of ``tripletune doctor`` for the shards, which this machine makes.

    The deployments that go on with the run read ``config`` of their own checkout, for ``[store]`` alone, and have an
    artifact root of their own.
    """
    if failed := preflight(config, movielens, imdb, artifacts, set, parts=("shards",)):
        return failed
    run = generate_shards(config=config, movielens=movielens, imdb=imdb, artifacts=artifacts, set=set)
    for deployment in ("tripletune-finetune-llama/finetune-llama", "tripletune-rank-models/rank-models"):
        run_deployed(deployment, run=run, config=config)
    return run


if __name__ == "__main__":
    nightly_pools()
