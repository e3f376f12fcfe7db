"""Rank with an adapter that is already there, measure, and promote it or log the reason why not."""

from __future__ import annotations

from prefect import flow

from flows import TIMEOUT_SECONDS
from tasks.page import name_flow_run
from tasks.session import open_session
from tasks.stages import run_part


@flow(
    name="tripletune-rank-models",
    flow_run_name=name_flow_run,
    timeout_seconds=TIMEOUT_SECONDS,
)
def rank_models(
    config: str = "configs/smoke.toml",
    movielens: str = "",
    imdb: str = "",
    artifacts: str = "artifacts",
    run: str = "",
    set: list[str] | None = None,
) -> str:
    """Rank, evaluate and promote, and return the run's name; arguments as in ``finetune_llama``."""
    with open_session(
        config, movielens=movielens, imdb=imdb, artifacts=artifacts, overrides=set or (), run=run, part="rank"
    ) as session:
        run_part(session, "rank")
        return session.run


if __name__ == "__main__":
    rank_models()
