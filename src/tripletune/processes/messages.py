"""Messages from a subprocess to the stage that started it: single lines on standard output with a marker."""

from __future__ import annotations

import json
import sys
from typing import Any

MARKER = "@tripletune "
"""Prefix of a line that is a message to the stage rather than log output."""


def send(kind: str, payload: dict[str, Any]) -> None:
    """Print one message to the stage."""
    # one write with its line break: processes that share the pipe then never mix two short lines
    sys.stdout.write(f"{MARKER}{json.dumps({'kind': kind, **payload})}\n")
    sys.stdout.flush()


def receive(line: str) -> dict[str, Any] | None:
    """Parse the message in a line of output; None for ordinary text."""
    _, marker, text = line.partition(MARKER)
    if not marker:
        return None
    try:
        message = json.loads(text)
    except ValueError:  # two processes wrote into one line
        return None
    return message if isinstance(message, dict) and "kind" in message else None
