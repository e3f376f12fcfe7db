"""The HTML report of a run: one file, no network, the same bytes for the same inputs.

It gathers what the stages wrote, and lets Jinja2 escape every text that comes from data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.evaluate.asked import asked_users
from tripletune.evaluate.cold import KNOWLEDGE_GROUPS, MEASURES
from tripletune.evaluate.metrics import VALID
from tripletune.evaluate.reliance import reliance_section
from tripletune.evaluate.tables import CEILING_ROW, ranked_systems, retrieval_rows
from tripletune.html.pages import write_page
from tripletune.html.pictures import Dot, draw_bars, draw_curves, draw_dots
from tripletune.schemas.answers import NUM_ANSWERS
from tripletune.schemas.rank import SERVED, SYSTEMS
from tripletune.schemas.retrieve import RECENT
from tripletune.store.parquet import parquet_files, scan
from tripletune.store.paths import read_manifest
from tripletune.store.request_time import request_time_note

MAX_EXAMPLES = 3
MAX_RELATIONS = 16
GROUPS = ("all", "warm", "unseen")
"""``warm`` users may be in the fits and in training examples; ``unseen`` ones are in neither."""
FAMILIES: tuple[dict[str, Any], ...] = (
    {
        "title": "Retrieval",
        "about": "Test likes ranked among the whole catalogue, without films rated before the cutoff.",
        "rows": retrieval_rows,
        "below": False,
        "purpose": "test",
    },
    {
        "title": "Re-ranking",
        "about": "The candidates put in order by each system, over the same users, with constrained decoding. "
        "A held-out film that is not among the candidates counts 0 for every system; "
        "the dashed line is the share of all users whose film is.",
        "rows": ranked_systems,
        "below": True,
        "purpose": "test",
    },
    {
        "title": "Re-ranking of valid",
        "about": "The same on each user's valid example. The promotion reads its half of these users; the other half "
        "chose the weight of the retriever's scores.",
        "rows": ranked_systems,
        "below": False,
        "purpose": "valid",
    },
)
CURVE_NAMES = {"lightgcn": "LightGCN", "rgat": "R-GAT", "sasrec": "SASRec", "sequence": "Sequence model"}
"""Titles of the training curves; any other stage that writes a ``curve.parquet`` is titled by its own name."""
HEADLINES = (
    (SERVED, "ndcg_at_5", "tuned model with the retriever's scores, ndcg_at_5"),
    ("tuned", "ndcg_at_5", "tuned model, ndcg_at_5"),
    ("retriever", "ndcg_at_5", "retriever's order, ndcg_at_5"),
    ("fused", "ndcg_at_10", "fused retriever, ndcg_at_10"),
    ("lightgcn", "ndcg_at_10", "LightGCN, ndcg_at_10"),
    ("retrieval", "ceiling", "held-out film is a candidate"),
    ("tuned", "valid_answers_unconstrained", "valid answers without constraint"),
)


def write_report(
    path: Path,
    metrics: pl.DataFrame,
    comparisons: pl.DataFrame,
    folders: Mapping[str, Path],
    *,
    confidence: float,
    seed: int,
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        metrics, comparisons: rows of ``METRICS`` and ``COMPARISONS`` of evaluate.
        folders: of ``split, rank, generate, retrieve, finetune`` and of the stages that train a model, by stage.
        confidence: of the intervals.
        seed: of the run.
    """
    write_page(
        path,
        "templates/report.html.j2",
        dataset=_dataset(folders),
        seed=seed,
        confidence=confidence,
        headlines=_headlines(metrics),
        families=[_family(family, metrics, comparisons) for family in FAMILIES],
        asked=asked_users(folders["split"], folders["retrieve"]),
        recent=RECENT if RECENT in metrics["row"] else "",
        request_time=request_time_note(folders),
        knowledge=_knowledge(metrics),
        shares=_shares(metrics, comparisons),
        curves=_curves(folders),
        attention=_attention(folders),
        reliance=reliance_section(folders.get("probe")),
        examples=_examples(folders["generate"], folders["rank"]),
        lineage=_lineage(folders),
    )


def _dataset(folders: Mapping[str, Path]) -> str:
    manifest = read_manifest(folders["rank"]) or {}
    return str(manifest.get("dataset", "unpublished"))


def _headlines(metrics: pl.DataFrame) -> list[dict[str, Any]]:
    found = {(line["row"], line["metric"]): line for line in metrics.filter(pl.col("group") == "all").to_dicts()}
    return [found[row, metric] | {"label": label} for row, metric, label in HEADLINES if (row, metric) in found]


def _family(family: Mapping[str, Any], metrics: pl.DataFrame, comparisons: pl.DataFrame) -> dict[str, Any]:
    family_rows = family["rows"](metrics["row"].unique().to_list())
    of_valid = pl.col("metric").str.starts_with(VALID) == (family["purpose"] == "valid")
    measured = metrics.filter(pl.col("row").is_in(family_rows), _is_ranking_metric(comparisons), of_valid)
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
    compared = [line | {"words": _words(line)} for line in lines]
    cutoff = names[-1].rpartition("_at_")[2] if names else ""
    deepest = [name for name in names if name.endswith(f"_at_{cutoff}")]
    ceiling = metrics.filter(pl.col("metric") == "ceiling", pl.col("group") == "all")["value"]
    limit = ceiling[0] if family["below"] and len(ceiling) else None
    limits = {name: limit for name in names if name.startswith("hr_")}
    first = (f"{VALID if family['purpose'] == 'valid' else ''}ndcg_at_{cutoff}", "all")
    return {
        "title": family["title"],
        "about": family["about"],
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


def _words(line: Mapping[str, Any]) -> str:
    if line["low"] is None:
        return "too few users"
    if line["low"] > 0:
        return "better"
    return "worse" if line["high"] < 0 else "no difference shown"


def _dots(title: str, measured: pl.DataFrame, metric: str, limit: float | None) -> str:
    chosen = measured.filter(pl.col("metric") == metric, pl.col("group") != "warm")
    dots = [
        Dot(line["row"], f"{line['group']} users", line["value"], line["low"], line["high"])
        for line in chosen.to_dicts()
    ]
    return draw_dots(dots, title=f"{title}: {metric} by row, with intervals", xlabel=metric, limit=limit)


def _is_ranking_metric(comparisons: pl.DataFrame) -> pl.Expr:
    """Whether a line is of a ranking metric: rows are compared by ranking metrics only."""
    return pl.col("metric").is_in(comparisons["metric"].unique().implode())


def _shares(metrics: pl.DataFrame, comparisons: pl.DataFrame) -> list[dict[str, Any]]:
    """Lines whose metric is no ranking metric of a family: the ceiling, valid answers, the promotion's metric."""
    return metrics.filter(~_is_ranking_metric(comparisons), pl.col("group") == "all").to_dicts()


def _knowledge(metrics: pl.DataFrame) -> list[dict[str, Any]]:
    """Groups of ``cold.KNOWLEDGE_GROUPS``, each with its rows: recall and share of cold films."""
    groups = []
    for group in KNOWLEDGE_GROUPS:
        part = metrics.filter(pl.col("group") == group)
        found = {(line["row"], line["metric"]): line for line in part.to_dicts()}
        rows = {row: [found[row, name] for name in MEASURES] for row, name in found if name == MEASURES[0]}
        order = [row for row in (*retrieval_rows(rows), CEILING_ROW) if row in rows]
        groups.append({"name": group, "rows": [(row, *rows[row]) for row in order]})
    return groups


def _curves(folders: Mapping[str, Path]) -> list[dict[str, str]]:
    pictures = []
    tuned = pl.read_parquet(folders["finetune"] / "curve.parquet").with_columns(name=pl.col("metric"))
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
        curve = pl.read_parquet(folders[stage] / "curve.parquet").with_columns(name=pl.format("fit {}", "fit"))
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


def _attention(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Three shares by relation: of all triples, of R-GAT's attention, of the triples chosen for users."""
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


def _examples(generate: Path, rank: Path) -> list[dict[str, Any]]:
    """The first test examples, by user, that the tuned model answered: prompt, held-out film, every system's answer."""
    predictions = pl.read_parquet(rank / "predictions.parquet").filter(pl.col("purpose") == "test")
    tuned = predictions.filter(pl.col("system") == "tuned", pl.col("constrained"))
    key = ["user_id", "cutoff"]
    first = tuned.select(key).unique().sort(key).head(MAX_EXAMPLES)
    shown = scan(parquet_files(generate, "test")).join(first.lazy(), on=key, how="semi").sort(key)
    examples = []
    for example in shown.collect().to_dicts():
        titles = dict(zip(example["candidates"], example["candidate_titles"], strict=True))
        answer = example["answers"][0]
        said = predictions.filter(pl.col(name) == example[name] for name in key).with_columns(
            pl.col("system").cast(pl.Enum(SYSTEMS))
        )
        answers = [
            {
                "system": line["system"],
                "constrained": line["constrained"],
                "films": [(titles.get(film, f"film {film}"), film == answer) for film in line["answers"][:NUM_ANSWERS]],
                "text": line["text"],
                "valid": line["valid"],
            }
            for line in said.sort("system", "constrained", descending=[False, True]).to_dicts()
        ]
        held_out = titles.get(answer, f"film {answer}, which retrieval did not find")
        examples.append({**example, "held_out": held_out, "predictions": answers})
    return examples


def _lineage(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Stage, fingerprint and parents of every folder the report was made from, and of their parents."""
    known: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    for stage, folder in folders.items():
        manifest = read_manifest(folder) or {}
        known[stage] = manifest.get("fingerprint", folder.name)
        parents[stage] = sorted(manifest.get("parents", {}))
        for parent, fingerprint in manifest.get("parents", {}).items():
            known.setdefault(parent, fingerprint)
    return [{"stage": stage, "fingerprint": known[stage], "parents": parents.get(stage, [])} for stage in sorted(known)]
