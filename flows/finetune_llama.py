"""LoRA-tune on shards that are already there; for a machine with GPUs."""

from __future__ import annotations

from prefect import flow

from flows import TIMEOUT_SECONDS
from tasks.page import name_flow_run
from tasks.session import open_session
from tasks.stages import run_part


@flow(
    name="tripletune-finetune-llama",
    flow_run_name=name_flow_run,
    timeout_seconds=TIMEOUT_SECONDS,
)
def finetune_llama(
    config: str = "configs/smoke.toml",
    movielens: str = "",
    imdb: str = "",
    artifacts: str = "artifacts",
    run: str = "",
    set: list[str] | None = None,
) -> str:
    """Train the adapter for this config and input, and return the run's name; arguments as in ``nightly``.

    With ``run``, the name that ``generate_shards`` returned, train on that run's shards and go on with it: its settings
    hold, and of ``config`` only ``[store]`` is read.
    """
    with open_session(
        config, movielens=movielens, imdb=imdb, artifacts=artifacts, overrides=set or (), run=run, part="finetune"
    ) as session:
        run_part(session, "finetune")
        return session.run


if __name__ == "__main__":
    finetune_llama()
