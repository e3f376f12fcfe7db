"""The HTML page about one night's shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tripletune.html.pages import write_page
from tripletune.html.pictures import draw_bars, draw_columns
from tripletune.quality.drift import in_bins
from tripletune.quality.figures import LENGTHS, QUANTILES
from tripletune.quality.measures import LEFT_OUT, TENTHS, Measures
from tripletune.quality.text import FLAWS

MAX_RELATIONS = 16
NUM_BINS = 24
TONIGHT, LAST_NIGHT = "tonight", "last night"
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
    path: Path,
    figures: dict[str, Any],
    measures: Measures,
    before: Measures | None,
    tiles: Sequence[dict[str, str]],
    *,
    dropped: int | None,
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        figures: what ``quality.json`` says.
        measures, before: of tonight and of the night that it is compared with.
        tiles: ``value, label, about`` of the figures at the top.
        dropped: training questions without an example; None where the manifest does not say.
    """
    compared = figures["compared_with"]
    write_page(
        path,
        "templates/quality.html.j2",
        run=figures["run"],
        shards=figures["shards"],
        figures=figures,
        tiles=tiles,
        before=compared and compared["run"],
        before_shards=compared and compared["shards"],
        not_compared=figures["not_compared"],
        shifts=figures["shifts"],
        labels=LABELS,
        pictures=_pictures(measures, before),
        counts_tokens=any(line["measure"] == "num_tokens" for line in figures["lengths"]),
        quantiles=[f"q{share * 100:g}" for share in QUANTILES],
        left_out=LEFT_OUT,
        kinds=list(FLAWS),
        found={line["kind"]: line for line in figures["flaws"]["kinds"]},
        dropped=dropped,
    )


def _pictures(measures: Measures, before: Measures | None) -> dict[str, Any]:
    lengths = [_length_picture(measure, measures, before) for measure in LENGTHS]
    return {
        "position": _position_picture(measures),
        "popularity": _popularity_picture(measures),
        "relations": _relation_picture(measures, before),
        "lengths": [picture for picture in lengths if picture],
    }


def _position_picture(measures: Measures) -> str:
    places = measures.places
    num_places = int(places["num_candidates"].max() or 0)  # type: ignore[arg-type]
    names = [str(place + 1) for place in range(num_places)]
    return draw_columns(
        names,
        {"answers": _shares(in_bins(measures)["answer_position"], names)},
        title="Answers by place among the candidates",
        xlabel="place among the candidates",
        # where the numbers of candidates differ, so do the even shares
        even=1 / num_places if places["num_candidates"].n_unique() == 1 else None,
    )


def _popularity_picture(measures: Measures) -> str:
    binned = in_bins(measures)
    tenths = [str(tenth + 1) for tenth in range(TENTHS)]
    series = {"candidates": binned["popularity"], "answers": binned["answer_popularity"]}
    return draw_columns(
        tenths,
        {name: _shares(counts, tenths) for name, counts in series.items()},
        title="Candidates and answers by tenth of all likes",
        xlabel="tenth of all likes, the most liked films last",
        even=1 / TENTHS,
    )


def _relation_picture(measures: Measures, before: Measures | None) -> str:
    ranked = measures.relations.sort("count", "relation", descending=[True, False])["relation"].to_list()
    names = ranked[:MAX_RELATIONS]
    if not names:
        return ""
    nights = {TONIGHT: measures} | ({LAST_NIGHT: before} if before else {})
    return draw_bars(
        names,
        {name: _shares(in_bins(night)["relation"], names) for name, night in nights.items()},
        title="Triples by relation",
        xlabel="share of the triples shown",
    )


def _shares(counts: pl.DataFrame, bins: Sequence[str]) -> list[float]:
    by_bin, total = dict(counts.iter_rows()), counts["count"].sum()
    return [by_bin.get(name, 0) / total if total else 0.0 for name in bins]


def _length_picture(measure: str, measures: Measures, before: Measures | None) -> str:
    nights = {TONIGHT: measures} | ({LAST_NIGHT: before} if before else {})
    values = {name: night.examples[measure].drop_nulls().to_numpy() for name, night in nights.items()}
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
