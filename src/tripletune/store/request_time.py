"""Which trained models take the time of the request as an input (``sequence.request_time``).

On MovieLens that time tells on which page the answer stands, so no model has it by default. A model that has it says so
in its ``model.json``, or in the facts of its manifest; audit and report name it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tripletune.store.paths import read_manifest


def reading_request_time(trained: Mapping[str, Path]) -> tuple[str, ...]:
    """Names of the stages whose model says ``request_time``; a missing or damaged file says nothing."""
    return tuple(name for name, folder in trained.items() if _says_so(folder))


def request_time_note(trained: Mapping[str, Path]) -> str:
    """A sentence that names these models; empty where there is none."""
    named = ", ".join(reading_request_time(trained))
    return f"{named} reads the time of the request: its lists are for comparison with published tables" if named else ""


def _says_so(folder: Path) -> bool:
    manifest = read_manifest(folder) or {}
    try:
        described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        described = {}
    said = (described, manifest.get("facts"))
    return any(isinstance(values, dict) and values.get("request_time") is True for values in said)
