"""Verdicts at the top of the report: what comparisons and probe say, in a word and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from tripletune.evaluate.hint_verdicts import hint_verdicts
from tripletune.evaluate.metrics import PROMOTION_METRIC
from tripletune.evaluate.verdict import Verdict, signed
from tripletune.schemas.rank import SERVED


def words(line: Mapping[str, Any]) -> str:
    """What a comparison's interval says of a against b."""
    if line["low"] is None:
        return "too few users"
    if line["low"] > 0:
        return "better"
    return "worse" if line["high"] < 0 else "no difference shown"


def verdicts(metrics: pl.DataFrame, comparisons: pl.DataFrame, probed: pl.DataFrame | None) -> list[Verdict]:
    """Did tuning help, against the untuned model and against the retriever's order; and did the hints?

    Args:
        metrics, comparisons: rows of ``METRICS`` and ``COMPARISONS`` of evaluate.
        probed: rows of ``PROBED``; None where the run has no stage ``probe``.
    """
    found = [
        _compared("Did tuning help?", "tuned", "untuned", metrics, comparisons),
        _compared("Is the tuned model better than the retriever's order?", "tuned", "retriever", metrics, comparisons),
    ]
    if SERVED in metrics["row"]:
        asked = "Is the tuned model with the retriever's scores better than the retriever's order?"
        found.append(_compared(asked, SERVED, "retriever", metrics, comparisons))
    return [*found, *hint_verdicts(probed)]


def _compared(question: str, a: str, b: str, metrics: pl.DataFrame, comparisons: pl.DataFrame) -> Verdict:
    """From the interval of a - b over all users; the means are those of the same users."""
    is_asked = (pl.col("metric") == PROMOTION_METRIC) & (pl.col("group") == "all")
    lines = comparisons.filter(is_asked, pl.col("row_a") == a, pl.col("row_b") == b).to_dicts()
    if not lines:
        return Verdict(question, "not known", f"{a} and {b} were not compared.")
    (line,) = lines
    users = f"{line['num_viewers']:,} {'user' if line['num_viewers'] == 1 else 'users'}"
    values = {row["row"]: row for row in metrics.filter(is_asked).to_dicts()}
    same = all(name in values and values[name]["num_viewers"] == line["num_viewers"] for name in (a, b))
    means = f", {values[a]['value']:.3f} against {values[b]['value']:.3f}" if same else ""
    if line["low"] is None:
        text = f"{PROMOTION_METRIC} of {a} minus {b}: {signed(line['difference'])}{means}; {users}, so no interval."
        return Verdict(question, "not known", text)
    if line["low"] == line["high"] == 0:
        return Verdict(question, "no", f"{PROMOTION_METRIC} of {a} and {b} is the same for each of {users}{means}.")
    said = words(line)
    word = {"better": "yes", "worse": "no"}.get(said, "not shown")
    interval = f"interval {signed(line['low'])} to {signed(line['high'])}"
    worse = " It is worse." if said == "worse" else ""
    text = f"{PROMOTION_METRIC} of {a} minus {b}: {signed(line['difference'])} ({interval}){means}, {users}.{worse}"
    return Verdict(question, word, text)
