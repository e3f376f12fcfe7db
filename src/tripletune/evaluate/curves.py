"""Curves of the trained models as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from tripletune.html.pictures import draw_curves
from tripletune.store.read import read_parquet

CURVE_NAMES = {"lightgcn": "LightGCN", "rgat": "R-GAT", "sasrec": "SASRec", "sequence": "Sequence model"}
"""Titles of the training curves; any other stage that writes a ``curve.parquet`` is titled by its own name."""


def training_curves(folders: Mapping[str, Path]) -> list[dict[str, str]]:
    """``caption`` and ``picture`` of each curve that ``finetune`` and the trained models wrote."""
    pictures = []
    tuned = read_parquet(folders["finetune"] / "curve.parquet").with_columns(name=pl.col("metric"))
    for names, ylabel, caption in (
        (("loss", "eval_loss"), "loss", "training and evaluation loss"),
        (("eval_ndcg",), "ndcg_at_5", "ndcg_at_5 of the examples evaluated while it trains"),
    ):
        lines = _lines(tuned.filter(pl.col("metric").is_in(names)), "value")
        if lines:
            picture = draw_curves(lines, title=f"Language model: {ylabel} by step", ylabel=ylabel)
            pictures.append({"caption": f"Language model: {caption}", "picture": picture})
    others = [stage for stage in folders if stage != "finetune" and (folders[stage] / "curve.parquet").is_file()]
    for stage, name in (CURVE_NAMES | {stage: stage for stage in others if stage not in CURVE_NAMES}).items():
        if stage not in folders:
            continue
        curve = read_parquet(folders[stage] / "curve.parquet").with_columns(name=pl.format("fit {}", "fit"))
        for column, label in (("loss", "training loss"), ("valid_ndcg_at_10", "valid ndcg_at_10")):
            lines = _lines(curve, column)
            if lines:
                picture = draw_curves(lines, title=f"{name}: {label} by step", ylabel=label)
                pictures.append({"caption": f"{name}: {label}", "picture": picture})
    return pictures


def _lines(curve: pl.DataFrame, column: str) -> dict[str, list[tuple[float, float]]]:
    points = curve.filter(pl.col(column).is_finite()).sort("name", "step", descending=[True, False])
    names = points["name"].unique(maintain_order=True).to_list()
    return {name: list(points.filter(pl.col("name") == name).select("step", column).iter_rows()) for name in names}
