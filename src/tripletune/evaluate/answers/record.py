"""What an audit leaves: measured lines, and a verdict in words for each system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import polars as pl
from scipy.stats import wilcoxon

from tripletune.config import EvaluateConfig
from tripletune.evaluate.metrics import mean_over_cutoffs
from tripletune.evaluate.significance import FloatArray, Interval, mean_interval

State: TypeAlias = Literal["none", "found", "not judged"]
LINES = pl.Schema(
    {
        "audit": pl.String,
        "row": pl.String,
        "measure": pl.String,
        "part": pl.String,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "p_value": pl.Float64,
        "p_adjusted": pl.Float64,
        "num_users": pl.Int64,
    }
)
"""evaluate/answers.parquet: ``part`` is a place, a group of users or a kind of answer, empty for the whole; ``low``,
``high`` and the p-values are null where the measure has none."""


class Line(NamedTuple):
    """A row of ``LINES``."""

    audit: str
    row: str
    measure: str
    part: str
    value: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    num_users: int = 0


class Verdict(NamedTuple):
    """What an audit says of a system."""

    audit: str
    row: str
    state: State
    """found: what the audit looks for is shown; none: it is not, which is no proof of absence."""
    words: str


@dataclass(frozen=True, slots=True)
class Audited:
    """Result of one audit, or of several."""

    lines: list[Line] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def add(self, other: Audited) -> None:
        """Append the lines and verdicts of another audit."""
        self.lines.extend(other.lines)
        self.verdicts.extend(other.verdicts)

    def frame(self) -> pl.DataFrame:
        """Lines as ``LINES``."""
        return pl.DataFrame(self.lines, LINES, orient="row")


def user_means(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """One row per user, sorted: the mean over the user's queries, without the users who have a null or NaN there."""
    values = frame.select("user_id", *columns).drop_nans().drop_nulls()
    return mean_over_cutoffs(values, ("user_id",)).sort("user_id")


def interval_of(values_U: FloatArray, settings: EvaluateConfig, seed: int) -> Interval:
    """Mean over users with its bootstrap interval.

    Raises:
        ValueError: no user, or a value that is not finite.
    """
    return mean_interval(values_U, confidence=settings.confidence, resamples=settings.bootstrap_resamples, seed=seed)


def symmetry_p_value(values_U: FloatArray) -> float:
    """Two-sided p-value for values that lean to one side of 0, by SciPy's signed-rank test (Wilcoxon 1945).

    Where a model's order has nothing to do with another one, their rank correlation is as likely to be positive as
    negative, of every size. 1 where every value is 0 or there is none.
    """
    rounded_U = np.round(values_U, 12)
    rounded_U = rounded_U[rounded_U != 0]
    return float(wilcoxon(rounded_U).pvalue) if len(rounded_U) else 1.0


def said_p(p_value: float) -> str:
    """A p-value in words."""
    return "p < .001" if p_value < 0.001 else f"p = {plain(p_value, 3)}"


def plain(value: float, decimals: int = 2) -> str:
    """A number without the zero before its point, as in the rest of the report."""
    text = f"{round(value, decimals) + 0.0:.{decimals}f}"  # no -.00
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text
