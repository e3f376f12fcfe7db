"""Triples by relation: of the knowledge graph, of R-GAT's attention, and of the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.html.pictures import draw_bars
from tripletune.store.parquet import parquet_files, scan

MAX_RELATIONS = 16


def triples_by_relation(folders: Mapping[str, Path]) -> dict[str, Any]:
    """``table`` and ``picture`` of three shares by relation: of all triples, of R-GAT's attention, of those chosen."""
    weights = (
        scan(folders["rgat"] / "attention.parquet")
        .filter(pl.col("fit") == "b")
        .group_by("relation")
        .agg(triples=pl.len().cast(pl.Float64), attention=pl.col("alpha").cast(pl.Float64).sum())
    )
    chosen = (
        scan(parquet_files(folders["retrieve"], "choices")).group_by("relation").agg(chosen=pl.len().cast(pl.Float64))
    )
    joined = weights.join(chosen, on="relation", how="full", coalesce=True).fill_null(0.0).collect()
    total = joined.select(pl.sum("triples", "attention", "chosen")).row(0, named=True)
    shares = joined.with_columns(pl.col(name) / (total[name] or 1.0) for name in total)
    shares = shares.sort(pl.col("attention").round(9), "relation", descending=[True, False])
    # sums over threads differ in the last bits; the report's bytes must not
    table = shares.with_columns(pl.col(*total).round(9)).to_dicts()
    if not table:
        return {"table": [], "picture": ""}
    top = table[:MAX_RELATIONS]
    series = {"triples": "of all triples", "attention": "of attention", "chosen": "of chosen triples"}
    picture = draw_bars(
        [line["relation"] for line in top],
        {label: [line[name] for line in top] for name, label in series.items()},
        title="Triples, attention and choices by relation",
        xlabel="share",
    )
    return {"table": table, "picture": picture}
