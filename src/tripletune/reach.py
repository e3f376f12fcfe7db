"""Whether a server answers at an address, asked before work begins that would fail without it, or wait for minutes."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from tripletune.errors import ConfigError

PATIENCE = 10.0
"""Seconds in which a server that is just restarting may come back."""
_PAUSE = 1.0
_PORTS = {"http": 80, "https": 443}


def require_server(what: str, url: str, repair: str, patience: float = PATIENCE) -> None:
    """Refuse an address at which nothing listens; an answer may still be an error.

    Addresses without a host and a port, and those that are reached through a proxy, are not asked.

    Args:
        what: the server, for the message.
        url: its address; a user name and a password in it are not shown.
        repair: what to do, for the message.
        patience: seconds for which it is tried again.

    Raises:
        ConfigError: nobody listens there, or the address is none.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError as error:
        raise ConfigError(f"the address of {what} is none ({error}); {repair}") from None
    if not host or not port or (parts.scheme in getproxies() and not proxy_bypass(host)):
        return
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, patience)).close()
            return
        except OSError as error:
            if time.monotonic() + _PAUSE > end:
                raise ConfigError(f"no {what} answers at {host}:{port} ({error}); {repair}") from None
        time.sleep(_PAUSE)
