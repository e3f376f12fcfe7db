"""The Prefect server that a run reports to."""

from __future__ import annotations

from prefect.settings import PREFECT_API_URL

from tripletune.reach import require_server


def require_prefect() -> None:
    """Refuse an address of the settings at which no Prefect server answers; without one a run starts its own.

    Raises:
        ConfigError: nobody listens there.
    """
    if url := PREFECT_API_URL.value():
        require_server("Prefect server", str(url), "start it, or unset PREFECT_API_URL: a run then has one of its own")
