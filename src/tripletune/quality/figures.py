"""Figures of one run's shards for the page and ``quality.json``: shares, tests and quantiles, as plain data."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from tripletune.quality.measures import Measures
from tripletune.schemas.generate import LEFT_OUT
from tripletune.schemas.query import PURPOSES

NAMED = 20
"""Maximum of example ids listed for one flaw or one repeated prompt."""
QUANTILES = (0.0, 0.05, 0.5, 0.95, 0.99, 1.0)
LENGTHS = {"num_tokens": "tokens", "chars": "characters"}

Rows = list[dict[str, Any]]


def figures_of(measures: Measures) -> dict[str, Any]:
    """Figures of the shards themselves; comparisons between runs are in ``quality.drift``."""
    examples, shown = measures.examples, int(measures.relations["count"].sum())
    relations = measures.relations.sort("count", "relation", descending=[True, False]).to_dicts()
    bare, candidates = (int(examples[name].sum()) for name in ("bare", "num_candidates"))
    repeated = examples.filter(pl.col("prompt_hash").is_duplicated())
    return {
        "examples": len(examples),
        "audience": [
            {"purpose": purpose, "warm": int((~part["unseen"]).sum()), "unseen": int(part["unseen"].sum())}
            for purpose, part in _of_purposes(examples)
        ],
        "templates": examples.group_by("template").len("examples").sort("template").to_dicts(),
        "answer_position": positions(measures.places),
        "popularity": _popularity(measures),
        "answers": _answers(examples),
        "triples": {
            "shown": shown,
            "relations": [row | {"share": _share(row["count"], shown)} for row in relations],
            "candidates_without": _share(bare, candidates) if shown else None,
        },
        "lengths": _lengths(examples),
        "shortened": {
            "examples": examples.select((pl.sum_horizontal(pl.col(name) for name in LEFT_OUT) > 0).sum()).item(),
            **examples.select(pl.col(list(LEFT_OUT)).cast(pl.Int64).sum()).row(0, named=True),
        },
        "flaws": {
            "examples": measures.flaws["example_id"].n_unique(),
            "kinds": _named(measures.flaws, "kind", line=pl.col("line").first()).to_dicts(),
        },
        "repeated_prompts": {
            "examples": len(repeated),
            "groups": _named(repeated, "prompt_hash").head(NAMED).drop("prompt_hash").to_dicts(),
        },
        "titles_of_other_scripts": _share(measures.titles["other_script"][0], measures.titles["count"][0]),
    }


def headline(figures: dict[str, Any]) -> dict[str, float]:
    """Figures by which runs are compared, under their names among a run's metrics."""
    of = {name: {line["purpose"]: line for line in figures[name]} for name in ("answer_position", "answers")}
    named = {
        "answer_position_p_value": of["answer_position"]["all"]["p_value"],
        "share_answers_retrieved": of["answers"]["test"]["share_retrieved"],
        "share_answers_retrieved_valid": of["answers"]["valid"]["share_retrieved"],
        "answer_popularity_auc": figures["popularity"][-1]["auc"],
        "share_candidates_without_triple": figures["triples"]["candidates_without"],
        "repeated_prompts": figures["repeated_prompts"]["examples"],
        "examples_with_text_flaws": figures["flaws"]["examples"],
        **{f"median_{line['measure']}": line["q50"] for line in figures["lengths"] if line["purpose"] == "all"},
    }
    return {name: float(value) for name, value in named.items() if value is not None}


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None


def _of_purposes(rows: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """The rows of each purpose, then all."""
    parts = [(purpose, rows.filter(pl.col("purpose") == purpose)) for purpose in PURPOSES.categories]
    return [*parts, ("all", rows)]


def positions(places: pl.DataFrame) -> Rows:
    """By purpose, a chi-square test whether the answers are spread evenly over the places, as shuffling gives.

    Under the null hypothesis an example of ``n`` candidates has one ``n``-th of its answers at each place. Several
    answers of one example take different places, which makes the test slightly conservative.

    Args:
        places: as in ``Measures``.
    """
    found = []
    for purpose, part in _of_purposes(places):
        count_P, expected_P = _by_place(part)
        total = int(count_P.sum())
        line: dict[str, Any] = {"purpose": purpose, "answers": total, "places": len(count_P)}
        if total and len(count_P) > 1:
            test = stats.chisquare(count_P, expected_P)
            favoured = int(np.argmax(count_P / expected_P))
            line |= {
                "chi_square": round(float(test.statistic), 4),
                "p_value": float(f"{test.pvalue:.6g}"),
                "favoured": favoured + 1,
                "favoured_share": _share(int(count_P[favoured]), total),
                "even_share": round(float(expected_P[favoured]) / total, 6),
            }
        else:
            line |= dict.fromkeys(("chi_square", "p_value", "favoured", "favoured_share", "even_share"))
        found.append(line)
    return found


def _by_place(part: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Observed answers by place and those expected of an even spread, each of shape (P,)."""
    num_places = part["num_candidates"].max() or 0
    count_P, expected_P = np.zeros(num_places), np.zeros(num_places)  # type: ignore[arg-type]
    for num_candidates, place, count in part.select("num_candidates", "place", "count").iter_rows():
        count_P[place] += count
        expected_P[:num_candidates] += count / num_candidates
    return count_P, expected_P


def _popularity(measures: Measures) -> Rows:
    """Mean likes of candidates and of answers, and ``auc``: how often the answer is more popular than another candidate
    of its example."""
    rows = []
    for purpose, part in _of_purposes(measures.popularity):
        sums = part.group_by("role").agg(pl.col("count", "likes").sum())
        means = {row["role"]: _share(row["likes"], row["count"]) for row in sums.to_dicts()}
        of = measures.examples if purpose == "all" else measures.examples.filter(pl.col("purpose") == purpose)
        auc = of["more_popular"].mean()
        rows.append(
            {
                "purpose": purpose,
                "likes_of_candidates": means.get("candidates"),
                "likes_of_answers": means.get("answers"),
                "auc": None if auc is None else round(float(auc), 6),  # type: ignore[arg-type]
            }
        )
    return rows


def _answers(examples: pl.DataFrame) -> Rows:
    """Share of answers among the candidates; None over all purposes, as training answers always are candidates."""
    return [
        {
            "purpose": purpose,
            "answers": int(part["answers"].sum()),
            "share_retrieved": None
            if purpose == "all"
            else _share(int(part["retrieved"].sum()), int(part["answers"].sum())),
        }
        for purpose, part in _of_purposes(examples)
    ]


def _lengths(examples: pl.DataFrame) -> Rows:
    rows = []
    for measure in LENGTHS:
        for purpose, part in _of_purposes(examples):
            values = part[measure].drop_nulls()
            if len(values):
                quantiles = {f"q{share * 100:g}": values.quantile(share, "nearest") for share in QUANTILES}
                rows.append({"measure": measure, "purpose": purpose, **quantiles})
    return rows


def _named(rows: pl.DataFrame, key: str, **more: pl.Expr) -> pl.DataFrame:
    """By key: number of examples that have it, and the first ids."""
    ids = pl.col("example_id").head(NAMED)
    return rows.group_by(key, maintain_order=True).agg(examples=pl.len(), **more, example_ids=ids)
