"""Tables of the report for each family of rows: means by group, pictures, and comparisons on the same users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from tripletune.evaluate.metrics import VALID
from tripletune.evaluate.tables import ranked_systems, retrieval_rows
from tripletune.evaluate.verdicts import words
from tripletune.html.pictures import Dot, draw_dots

GROUPS = ("all", "warm", "unseen")
"""``warm`` users may be in the fits and in training examples; ``unseen`` ones are in neither."""
FAMILIES: tuple[dict[str, Any], ...] = (
    {
        "anchor": "retrieval",
        "title": "Retrieval",
        "about": "Test likes ranked among the whole catalogue, without films rated before the cutoff.",
        "rows": retrieval_rows,
        "below": False,
        "purpose": "test",
    },
    {
        "anchor": "re-ranking",
        "title": "Re-ranking",
        "about": "The candidates put in order by each system, over the same users, with constrained decoding. "
        "A held-out film that is not among the candidates counts 0 for every system; "
        "the dashed line is the share of all users whose film is.",
        "rows": ranked_systems,
        "below": True,
        "purpose": "test",
    },
    {
        "anchor": "re-ranking-valid",
        "title": "Re-ranking of valid",
        "about": "The same on each user's valid example. The promotion reads its half of these users; the other half "
        "chose the weight of the retriever's scores.",
        "rows": ranked_systems,
        "below": False,
        "purpose": "valid",
    },
)


def family_tables(family: Mapping[str, Any], metrics: pl.DataFrame, comparisons: pl.DataFrame) -> dict[str, Any]:
    """One family's tables and pictures, as ``report/family.html.j2`` names them.

    Args:
        family: one of ``FAMILIES``.
        metrics, comparisons: rows of ``METRICS`` and ``COMPARISONS`` of evaluate.
    """
    family_rows = family["rows"](metrics["row"].unique().to_list())
    of_valid = pl.col("metric").str.starts_with(VALID) == (family["purpose"] == "valid")
    measured = metrics.filter(pl.col("row").is_in(family_rows), is_ranking_metric(comparisons), of_valid)
    names = measured["metric"].unique(maintain_order=True).to_list()
    groups: list[dict[str, Any]] = []
    for group in GROUPS:
        part = measured.filter(pl.col("group") == group)
        if part.height:
            cells = {(line["row"], line["metric"]): line for line in part.to_dicts()}
            everyone = part["num_viewers"].max()
            rows = [
                {
                    "name": row,
                    "cells": [cells[row, name] for name in names],
                    "fewer": _fewer(cells[row, names[0]], everyone),
                }
                for row in family_rows
                if (row, names[0]) in cells
            ]
            groups.append({"name": group, "num_viewers": everyone, "rows": rows})
    lines = comparisons.filter(pl.col("row_a").is_in(family_rows), of_valid).to_dicts()
    compared = [line | {"words": words(line)} for line in lines]
    cutoff = names[-1].rpartition("_at_")[2] if names else ""
    deepest = [name for name in names if name.endswith(f"_at_{cutoff}")]
    ceiling = metrics.filter(pl.col("metric") == "ceiling", pl.col("group") == "all")["value"]
    limit = ceiling[0] if family["below"] and len(ceiling) else None
    limits = {name: limit for name in names if name.startswith("hr_")}
    first = (f"{VALID if family['purpose'] == 'valid' else ''}ndcg_at_{cutoff}", "all")
    return {
        "about": family["about"],
        "has_limit": limit is not None,
        "names": names,
        "groups": groups,
        "sampled": sorted({row["name"] for group in groups for row in group["rows"] if row["fewer"]}),
        "pictures": [_dots(family["title"], measured, name, limits.get(name)) for name in deepest],
        "compared": [line for line in compared if (line["metric"], line["group"]) == first],
        "compared_more": [line for line in compared if (line["metric"], line["group"]) != first],
    }


def _fewer(line: Mapping[str, Any], everyone: Any) -> str:
    """Number of users of a row that ranked only a part of them, else nothing."""
    return "" if line["num_viewers"] == everyone else f"{line['num_viewers']:,} users"


def _dots(title: str, measured: pl.DataFrame, metric: str, limit: float | None) -> str:
    chosen = measured.filter(pl.col("metric") == metric, pl.col("group") != "warm")
    dots = [
        Dot(line["row"], f"{line['group']} users", line["value"], line["low"], line["high"])
        for line in chosen.to_dicts()
    ]
    return draw_dots(dots, title=f"{title}: {metric} by row, with intervals", xlabel=metric, limit=limit)


def is_ranking_metric(comparisons: pl.DataFrame) -> pl.Expr:
    """Whether a line is of a ranking metric: rows are compared by ranking metrics only."""
    return pl.col("metric").is_in(comparisons["metric"].unique().implode())
