"""Drift of the shards between two runs.

Two measures: the population stability index of credit scoring for binned quantities, and the Kolmogorov-Smirnov
distance for numbers. By convention an index below ``MODERATE`` is no shift and one above ``MAJOR`` a major shift; the
distance, the largest gap between two cumulative shares, has no convention and is classified by ``FAR``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from tripletune.quality.measures import Measures

MODERATE, MAJOR = 0.1, 0.25
FAR = (0.05, 0.1)
"""Distances of a moderate and a major shift: a twentieth, and a tenth, of the examples have moved."""
FLOOR = 1e-4
"""Minimum of a share; the index is undefined for a share of 0."""
LIKED_BINS = {"0": 0, "1-2": 2, "3-5": 5, "6-10": 10, "11-15": 15, "16 and more": None}
"""Upper ends of the bins of the number of likes shown."""
NUMBERS = ("num_tokens", "chars", "liked", "history")


Words = Literal["no shift", "moderate", "major"]


class Shift(NamedTuple):
    """One measure compared between two runs."""

    statistic: Literal["psi", "ks"]
    measure: str
    value: float
    p_value: float | None
    """p-value of the distance: probability of one this large between samples of one population; None for an index."""
    before: str
    """Largest bin with its share, or the median."""
    now: str
    words: Words

    @property
    def name(self) -> str:
        """Name among a run's metrics."""
        return f"{self.statistic}_{self.measure}"


def find_shifts(before: Measures, now: Measures) -> list[Shift]:
    """Compare every measure that both runs have, indices first."""
    return [*_binned_shifts(before, now), *_number_shifts(before, now)]


def stability_index(before_B: npt.NDArray[np.float64], now_B: npt.NDArray[np.float64]) -> float:
    """Population stability index, ``sum((q - p) ln(q / p))`` over the bins' shares.

    Args:
        before_B, now_B: counts in the same bins, shape (B,); neither is all 0.
    """
    p, q = (np.maximum(counts / counts.sum(), FLOOR) for counts in (before_B, now_B))
    return float(np.sum((q - p) * np.log(q / p)))


def in_bins(measures: Measures) -> dict[str, pl.DataFrame]:
    """``bin, count`` of each binned measure, in the order of the bins."""
    examples, popularity = measures.examples, measures.popularity
    # the number of a bin is the number of upper ends below the value
    number = pl.sum_horizontal(pl.col("liked") > end for end in LIKED_BINS.values() if end is not None)
    liked = number.replace_strict(dict(enumerate(LIKED_BINS)), return_dtype=pl.Enum(list(LIKED_BINS)))

    def tenths(role: str) -> pl.DataFrame:
        return popularity.filter(pl.col("role") == role).select(bin=pl.col("tenth") + 1, count="count")

    binned = {
        "popularity": tenths("candidates"),
        "answer_popularity": tenths("answers"),
        "answer_position": measures.places.select(bin=pl.col("place") + 1, count="count"),
        "relation": measures.relations.select(bin="relation", count="count"),
        "liked": examples.select(bin=liked).group_by("bin").len("count"),
        "purpose": examples.select(bin="purpose").group_by("bin").len("count"),
        "template": examples.select(bin="template").group_by("bin").len("count"),
    }
    summed = {name: rows.group_by("bin").agg(pl.col("count").sum()).sort("bin") for name, rows in binned.items()}
    return {name: rows.with_columns(pl.col("bin").cast(pl.String)) for name, rows in summed.items()}


def _binned_shifts(before: Measures, now: Measures) -> Iterator[Shift]:
    earlier = in_bins(before)
    for measure, counts in in_bins(now).items():
        both = earlier[measure].join(counts, on="bin", how="full", coalesce=True, suffix="_now").fill_null(0)
        both = both.sort("bin")
        before_B, now_B = (both[name].cast(pl.Float64).to_numpy() for name in ("count", "count_now"))
        if not (before_B.sum() and now_B.sum()):
            continue  # a template without triples has no relations
        value = stability_index(before_B, now_B)
        words = _words(value, MODERATE, MAJOR)
        yield Shift("psi", measure, value, None, _largest(earlier[measure]), _largest(counts), words)


def _words(value: float, moderate: float, major: float) -> Words:
    if value < moderate:
        return "no shift"
    return "moderate" if value <= major else "major"


def _largest(counts: pl.DataFrame) -> str:
    first = counts.sort("count", "bin", descending=[True, False]).row(0, named=True)
    return f"{first['bin']}: {first['count'] / counts['count'].sum():.1%}"


def _number_shifts(before: Measures, now: Measures) -> Iterator[Shift]:
    for measure in NUMBERS:
        earlier, current = (_numbers(one, measure) for one in (before, now))
        if not (len(earlier) and len(current)):
            continue  # tokens were not counted
        found = stats.ks_2samp(earlier, current, method="asymp")
        value = float(found.statistic)
        medians = [f"median {np.median(sample):,.0f}" for sample in (earlier, current)]
        yield Shift("ks", measure, value, float(found.pvalue), medians[0], medians[1], _words(value, *FAR))


def _numbers(measures: Measures, measure: str) -> npt.NDArray[np.float64]:
    return measures.examples[measure].drop_nulls().cast(pl.Float64).to_numpy()
