"""HTML page about one run's shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tripletune.html.pages import write_page
from tripletune.html.pictures import draw_bars, draw_columns
from tripletune.quality.drift import in_bins
from tripletune.quality.figures import LENGTHS, QUANTILES, headline
from tripletune.quality.measures import TENTHS, Measures
from tripletune.quality.text import FLAWS
from tripletune.schemas.generate import LEFT_OUT

MAX_RELATIONS = 16
NUM_BINS = 24
CURRENT, LAST_NIGHT = "this run", "last run"
LABELS = {
    "popularity": "popularity of the candidates",
    "answer_popularity": "popularity of the answers",
    "answer_position": "place of the answers",
    "relation": "relations of the triples",
    "liked": "likes shown",
    "purpose": "purposes",
    "template": "templates",
    "history": "rows before the cutoff",
    **LENGTHS,
}


def write_quality_page(
    path: Path, figures: dict[str, Any], measures: Measures, before: Measures | None, *, dropped: int | None
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        figures: content of ``quality.json``.
        measures, before: measures of this run and of the run that it is compared with.
        dropped: number of training queries without an example; None if the manifest lacks it.
    """
    write_page(
        path,
        "templates/quality.html.j2",
        figures=figures,
        tiles=_tiles(figures),
        labels=LABELS,
        pictures=_pictures({CURRENT: measures} | ({LAST_NIGHT: before} if before else {})),
        counts_tokens=any(line["measure"] == "num_tokens" for line in figures["lengths"]),
        quantiles=[f"q{share * 100:g}" for share in QUANTILES],
        left_out=list(LEFT_OUT),
        kinds=list(FLAWS),
        found={line["kind"]: line for line in figures["flaws"]["kinds"]},
        dropped=dropped,
    )


def _tiles(figures: dict[str, Any]) -> list[dict[str, str]]:
    """``label, value, about`` of the figures at the top."""
    metrics = headline(figures)

    def number(name: str, form: str) -> str:
        return format(metrics[name], form) if name in metrics else "none"

    flawed = figures["flaws"]["examples"] + figures["repeated_prompts"]["examples"]
    tiles = [
        ("examples", f"{figures['examples']:,}", "train, valid and test"),
        ("p-value, answers in every place alike", number("answer_position_p_value", ".3g"), "chi-square"),
        ("of test answers retrieved", number("share_answers_retrieved", ".1%"), "the ceiling of re-ranking"),
        ("AUC of popularity", number("answer_popularity_auc", ".3f"), ".5 is chance"),
        ("flawed or repeated", f"{flawed:,}", "examples, by their text"),
    ]
    for statistic in ("psi", "ks"):
        found = [line for line in figures["shifts"] if line["statistic"] == statistic]
        if found:
            furthest = max(found, key=lambda line: line["value"])
            tiles.append((f"largest {statistic.upper()}", f"{furthest['value']:.3f}", LABELS[furthest["measure"]]))
    return [{"label": label, "value": value, "about": about} for label, value, about in tiles]


def _pictures(runs: Mapping[str, Measures]) -> dict[str, Any]:
    """SVGs of this run's shards, the last two kinds next to the last run's."""
    bins = {name: in_bins(one) for name, one in runs.items()}
    now, binned = runs[CURRENT], bins[CURRENT]
    num_places = int(now.places["num_candidates"].max() or 0)  # type: ignore[arg-type]
    places = [str(place + 1) for place in range(num_places)]
    tenths = [str(tenth + 1) for tenth in range(TENTHS)]
    roles = {"candidates": binned["popularity"], "answers": binned["answer_popularity"]}
    relations = now.relations.sort("count", "relation", descending=[True, False])["relation"].to_list()[:MAX_RELATIONS]
    shares = {name: _shares(one["relation"], relations) for name, one in bins.items()}
    lengths = [_length_picture(measure, runs) for measure in LENGTHS]
    return {
        "position": draw_columns(
            places,
            {"answers": _shares(binned["answer_position"], places)},
            title="Answers by place among the candidates",
            xlabel="place among the candidates",
            # where the numbers of candidates differ, so do the even shares
            even=1 / num_places if now.places["num_candidates"].n_unique() == 1 else None,
        ),
        "popularity": draw_columns(
            tenths,
            {name: _shares(counts, tenths) for name, counts in roles.items()},
            title="Candidates and answers by tenth of all likes",
            xlabel="tenth of all likes, the most liked films last",
            even=1 / TENTHS,
        ),
        "relations": draw_bars(relations, shares, title="Triples by relation", xlabel="share of the triples shown")
        if relations
        else "",
        "lengths": [picture for picture in lengths if picture],
    }


def _shares(counts: pl.DataFrame, bins: Sequence[str]) -> list[float]:
    by_bin, total = dict(counts.iter_rows()), counts["count"].sum()
    return [by_bin.get(name, 0) / total if total else 0.0 for name in bins]


def _length_picture(measure: str, runs: Mapping[str, Measures]) -> str:
    values = {name: one.examples[measure].drop_nulls().to_numpy() for name, one in runs.items()}
    values = {name: lengths for name, lengths in values.items() if len(lengths)}
    if not values:
        return ""
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), NUM_BINS)
    return draw_columns(
        [f"{edge:,.0f}" for edge in edges[:-1]],
        {name: (np.histogram(lengths, edges)[0] / len(lengths)).tolist() for name, lengths in values.items()},
        title=f"Examples by {LENGTHS[measure]}",
        xlabel=f"{LENGTHS[measure]}, from",
    )
