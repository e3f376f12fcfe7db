"""First step of a nightly flow: the checks of ``tripletune doctor``, so that a run that cannot end does not begin."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.states import Failed, State

from tripletune.config.presets import load_config
from tripletune.doctor.check import PARTS, Check, Part
from tripletune.doctor.examine import examine
from tripletune.errors import UserError


class PreflightError(UserError):
    """A check failed that would lose the run; the message has a clause for each."""


def _examine(
    config: str, movielens: str, imdb: str, artifacts: str, overrides: Sequence[str], parts: Collection[Part]
) -> list[Check]:
    settings = load_config(Path(config), overrides, movielens=movielens, imdb=imdb)
    return examine(settings, Path(artifacts), parts)


def find_problems(
    config: str,
    movielens: str = "",
    imdb: str = "",
    artifacts: str = "artifacts",
    set: Sequence[str] | None = None,
    parts: Collection[Part] = PARTS,
) -> str:
    """What would fail a run with these parameters of a flow, in one line; empty: nothing."""
    try:
        checks = _examine(config, movielens, imdb, artifacts, set or (), parts)
    except UserError as error:
        return str(error)
    return " | ".join(str(check) for check in checks if check.status == "fail")


def preflight(
    config: str,
    movielens: str,
    imdb: str,
    artifacts: str,
    set: Sequence[str] | None,
    parts: Collection[Part] = PARTS,
) -> State[Any] | None:
    """Log the warnings of the checks; the failed state that the flow returns, or None where it can go on.

    The state is returned and not raised, so that the log ends with its one line and without a traceback.

    Args:
        config, movielens, imdb, artifacts, set: parameters of the flow.
        parts: of the run that this machine runs.
    """
    try:
        checks = _examine(config, movielens, imdb, artifacts, set or (), parts)
    except UserError as error:
        return Failed(message=str(error), data=error)
    for check in checks:
        if check.status == "warn":
            get_run_logger().warning("pre-flight: %s", check)
    problems = " | ".join(str(check) for check in checks if check.status == "fail")
    if not problems:
        return None
    failed = PreflightError(f"pre-flight failed, nothing was started: {problems}")
    return Failed(message=str(failed), data=failed)
