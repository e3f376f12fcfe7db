"""A decision as rows and as a page, ``decision.html`` next to ``decision.json``.

The report belongs to the evaluate stage, which ends before promotion and is reused by later runs; so the decision has a
page of its own, and the report's side is ``templates/promotion.html.j2``, a part for any page that has a decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tripletune.html.pages import write_page

PAGE = "decision.html"
NUMBERS = ("value", "difference", "lower_bound", "allowed")
"""Numbers of a comparison, as ``decision.Comparison`` describes them."""


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A comparison as it is shown."""

    name: str
    version: str
    contract: str
    """``own`` where the version ranked prompts of its own contract; else empty."""
    value: str
    difference: str
    lower_bound: str
    allowed: str
    users: str
    verdict: str
    reason: str


def decision_rows(decision: Mapping[str, Any]) -> list[DecisionRow]:
    """The comparisons of a decision; none in decisions of older versions.

    Args:
        decision: as ``decision.json`` has it.
    """
    return [_row(one) for one in decision.get("comparisons", ())]


def _row(one: Mapping[str, Any]) -> DecisionRow:
    shown = {
        name: "" if one.get(name) is None else f"{one[name]:{'' if name == 'value' else '+'}.4f}" for name in NUMBERS
    }
    return DecisionRow(
        name=one["name"],
        version=one["version"],
        contract="own" if one.get("own_contract") else "",
        users=f"{one['num_viewers']:,}" if one["num_viewers"] else "",
        verdict=one["verdict"],
        reason=one["reason"],
        **shown,
    )


def headline(decision: Mapping[str, Any]) -> str:
    """Whether the adapter was promoted, as which version, and why."""
    verdict = "promoted" if decision["promote"] else "not promoted"
    verdict += f" as version {decision['version']}" if decision.get("version") else ""
    verdict += ", the best version" if decision.get("is_best") else ""
    return f"{verdict}: {decision['reason']}"


def promotion_part(decision: Mapping[str, Any]) -> dict[str, Any]:
    """What ``templates/promotion.html.j2`` shows, as its variable ``promotion``.

    Args:
        decision: as ``decision.json`` has it.
    """
    return {
        "headline": headline(decision),
        "rows": decision_rows(decision),
        "facts": [
            (name, str(decision[key]))
            for name, key in (
                ("run", "run"),
                ("registered model", "model"),
                ("adapter", "adapter"),
                ("champion before", "champion_before"),
                ("best version before", "best_before"),
                ("decided (UTC)", "decided"),
            )
            if decision.get(key)
        ],
    }


def write_decision_page(folder: Path, decision: Mapping[str, Any]) -> Path:
    """Write ``decision.html`` into the folder of a decision; returns the file."""
    path = folder / PAGE
    write_page(path, "templates/decision.html.j2", promotion=promotion_part(decision))
    return path
