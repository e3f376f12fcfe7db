"""Checks of the servers that a run talks to: each must answer within seconds, before hours depend on it."""

from __future__ import annotations

import os
import socket
import tomllib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from tripletune.config import TrackingConfig
from tripletune.doctor.check import Check
from tripletune.store.runs import tracking_uri

PATIENCE = 5.0
"""Seconds that a server has to answer."""
CLOCKS_APART = 30.0
"""Seconds by which a server's clock may differ: tokens of object stores and leases of slots live for minutes."""
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_prefect() -> Check:
    """The Prefect server of ``PREFECT_API_URL``, from the environment or Prefect's active profile."""
    address = os.environ.get("PREFECT_API_URL", "") or _profile_address()
    if not address:
        return Check("prefect", "ok", "no PREFECT_API_URL: each run starts a server of its own, deployments need one")
    return _ask("prefect", address, f"{address.rstrip('/')}/health", "prefect server start, or set PREFECT_API_URL")


def _profile_address() -> str:
    home = Path(os.environ.get("PREFECT_HOME", "") or "~/.prefect").expanduser()
    try:
        profiles = tomllib.loads((home / "profiles.toml").read_text(encoding="utf-8"))
        name = os.environ.get("PREFECT_PROFILE", "") or profiles.get("active", "")
        return str(profiles["profiles"][name].get("PREFECT_API_URL", ""))
    except (OSError, ValueError, KeyError, AttributeError):
        return ""


def check_mlflow(settings: TrackingConfig, root: Path) -> Check:
    """The MLflow store: a server that answers, a database that can be reached, or a file that can be written."""
    uri = tracking_uri(settings, root)
    where = urlsplit(uri)
    kind = where.scheme.partition("+")[0]
    if kind in ("http", "https"):
        return _ask(
            "mlflow", uri, f"{uri.rstrip('/')}/health", "start it (docs/runbook.md), or set MLFLOW_TRACKING_URI"
        )
    if kind in _PORTS:
        return _knock("mlflow", uri, where.hostname or "localhost", where.port or _PORTS[kind])
    if kind not in ("sqlite", "file", ""):
        return Check("mlflow", "ok", f"{_shown(uri)}, which is not asked")
    file = Path(where.path[1:] if kind == "sqlite" else where.path)
    there = next(path for path in (file.absolute(), *file.absolute().parents) if path.exists())
    if os.access(there, os.W_OK):
        return Check("mlflow", "ok", f"{kind or 'file'} {file}")
    return Check("mlflow", "fail", f"{there} cannot be written", "give a store that can: tracking.uri, --artifacts")


def _ask(name: str, address: str, url: str, advice: str) -> Check:
    """Whether a server answers its health page, and what its clock says."""
    import httpx

    where = urlsplit(url)
    try:
        answer = httpx.get(url, timeout=PATIENCE, follow_redirects=True)
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = f"status {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else str(error)
        reason = reason.replace(where.netloc, where.hostname or "") or type(error).__name__
        return Check(name, "fail", f"{_shown(address)} does not answer ({reason.splitlines()[0]})", advice)
    apart = _seconds_apart(answer.headers.get("date", ""))
    if abs(apart) > CLOCKS_APART:
        said = f"{_shown(address)} answers, and its clock is {abs(apart):.0f} s {'ahead' if apart > 0 else 'behind'}"
        return Check(name, "warn", said, "set the clocks of both (timedatectl)")
    return Check(name, "ok", f"{_shown(address)} answers")


def _seconds_apart(date: str) -> float:
    """By how much a server's clock, in an answer's header, is ahead of ours; 0 where it says nothing."""
    try:
        return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def _knock(name: str, uri: str, host: str, port: int) -> Check:
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError as error:
        return Check(
            name, "fail", f"{_shown(uri)} does not answer ({error})", "start the database, or set tracking.uri"
        )
    return Check(name, "ok", f"{_shown(uri)} answers")


def _shown(address: str) -> str:
    """An address without user, password and query."""
    where = urlsplit(address)
    return where._replace(netloc=where.netloc.rpartition("@")[2], query="", fragment="").geturl()
