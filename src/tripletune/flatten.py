"""Flatten nested tables to dotted names, for settings, ingredients, facts and contracts alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value below a table under its dotted name, in order; an empty table inside it has no name and no row.

    Args:
        table: values and further tables; lists are values.
        prefix: stands before every name.
    """
    rows: dict[str, Any] = {}
    for key, value in table.items():
        rows |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return rows
