"""Deployable Prefect flows: one file each, no logic. They run from the checkout, through module entrypoints."""

import os

from tripletune.errors import ConfigError

# Read by Prefect when it is first imported, which is right after this package.
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
# A server of its own takes 12-17 s to start on two cores, and longer on a busy machine.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
# Prefect's page shows our own lines; lines of threads that belong to no run stay on the console, without a warning.
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "tripletune")
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")


def _timeout_seconds() -> float | None:
    """Seconds after which a flow run fails, from its deployment's ``TRIPLETUNE_TIMEOUT_HOURS``; None: never."""
    given = os.environ.get("TRIPLETUNE_TIMEOUT_HOURS", "")
    try:
        hours = float(given or "inf")
    except ValueError:
        hours = 0.0
    if not hours > 0:
        raise ConfigError(f"TRIPLETUNE_TIMEOUT_HOURS = {given!r}: a number above 0, or empty for no limit")
    return None if hours == float("inf") else hours * 3600


TIMEOUT_SECONDS = _timeout_seconds()
"""For every flow's ``timeout_seconds``: of a deployment, so that a run by hand, which somebody watches, has none."""
