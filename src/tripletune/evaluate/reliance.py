"""The report's section on what the model relies on, from the summary that the probe stage wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.schemas.base import conform
from tripletune.schemas.probe import PROBED, PROBED_NAME
from tripletune.schemas.rank import SERVED
from tripletune.store.paths import read_manifest
from tripletune.store.read import read_parquet

_CHANGED = {"change": "gain, nats", "distance": "distance", "first_changed": "first changes"}
TABLES: tuple[Mapping[str, Any], ...] = (
    {"kind": "part", "title": "Without a part of the prompt", "row": "part", "measures": _CHANGED},
    {"kind": "relation", "title": "Without a fact of hint 2, by relation", "row": "relation", "measures": _CHANGED},
    {
        "kind": "stability",
        "title": "Asked in another way",
        "row": "change",
        "measures": {
            "tau": "tau",
            "tau_by_place": "tau of places",
            "kept": "candidates kept",
            "first_changed": "first changes",
        },
    },
)
_ORDER = ("tuned", SERVED, "retriever")


def read_probed(probe: Path) -> pl.DataFrame:
    """Rows of ``PROBED``, from the stage's folder."""
    return conform(read_parquet(probe / PROBED_NAME), PROBED)


def reliance_section(probe: Path | None) -> dict[str, Any] | None:
    """Values of ``templates/report/reliance.html.j2``: the sentences, and tables by purpose and system.

    Args:
        probe: the stage's folder; None: the run has no such stage, and no such section.
    """
    if probe is None:
        return None
    summary = read_probed(probe)
    facts = (read_manifest(probe) or {}).get("facts", {})
    groups = []
    order = pl.col("system").replace_strict({name: place for place, name in enumerate(_ORDER)})
    for (purpose, system), rows in summary.sort("purpose", order, maintain_order=True).group_by(
        "purpose", "system", maintain_order=True
    ):
        tables = [table for one in TABLES if (table := _table(one, rows))["rows"]]
        groups.append({"purpose": purpose, "system": system, "tables": tables})
    return {"said": str(facts.get("said", "")).split(" · "), "groups": groups}


def _table(one: Mapping[str, Any], rows: pl.DataFrame) -> dict[str, Any]:
    """The rows of a kind; measures that none of them has are no column."""
    mine = rows.filter(pl.col("kind") == one["kind"])
    cells = {(line["name"], line["measure"]): line for line in mine.to_dicts()}
    measures = {name: title for name, title in one["measures"].items() if name in mine["measure"]}
    if "kept" in measures and (mine.filter(pl.col("measure") == "kept")["value"] == 1.0).all():
        del measures["kept"]
    names = mine["name"].unique(maintain_order=True).to_list()
    return {
        **one,
        "columns": list(measures.values()),
        "rows": [
            {
                "name": name,
                "cells": [cells.get((name, measure)) for measure in measures],
                **{key: cells[name, "first_changed"][key] for key in ("num_users", "num_examples")},
            }
            for name in names
        ],
    }
