"""Audit of positions: do the answers depend on where a candidate stands in the prompt?

Candidates are shown in an order that is shuffled for each user, so whatever the model knows of films and users, its
first answer stands at each place equally often, unless the place itself counts.
"""

# Shape letters in this file: C places shown, N neighbouring places taken together
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import chi2, chisquare

from tripletune.config import EvaluateConfig
from tripletune.evaluate.answers.record import (
    Audited,
    Line,
    Verdict,
    interval_of,
    plain,
    said_p,
    symmetry_p_value,
    user_means,
)
from tripletune.evaluate.answers.shown import correlate
from tripletune.evaluate.significance import holm
from tripletune.schemas.answers import NUM_ANSWERS

NAME = "positions"
LEAST_EXPECTED = 5
"""Answers expected at a place, or at neighbouring places taken together, from which on chi-square's approximation is
used (Cochran 1954)."""
_TESTS = {"first": "first answers", "five": "first five", "tau": "order"}


class ChiSquare(NamedTuple):
    """A test of counts against an even spread."""

    statistic: float
    p_value: float
    num_bins: int


def even_spread(count_C: npt.NDArray[np.int64], num_lists: int, chosen: int) -> ChiSquare | None:
    """Test whether each of C places is chosen equally often, where each list chooses ``chosen`` different ones.

    Pearson's statistic from SciPy, times ``(C - 1) / (C - chosen)``: places of one list exclude each other, so counts
    vary less than independent ones (the variance of a hypergeometric count; it is then Cochran's Q, Biometrika 1950).
    Neighbouring places are taken together until ``LEAST_EXPECTED`` are expected.

    Returns:
        None where fewer than two groups of places are left, or every place is chosen.
    """
    num_places = len(count_C)
    expected = num_lists * chosen / num_places
    num_bins = num_places // int(np.ceil(LEAST_EXPECTED / expected)) if expected else 0
    if num_bins < 2 or chosen >= num_places:
        return None
    parts = np.array_split(count_C, num_bins)
    expected_N = np.array([len(part) * expected for part in parts])
    statistic = chisquare([part.sum() for part in parts], expected_N).statistic
    corrected = float(statistic) * (num_places - 1) / (num_places - chosen)
    return ChiSquare(corrected, float(chi2.sf(corrected, num_bins - 1)), num_bins)


def audit_positions(
    placed: pl.DataFrame, systems: Sequence[str], labels: Sequence[str], *, settings: EvaluateConfig, seed: int
) -> Audited:
    """Places shown of the first answer and of the first five, and the order's correlation with the order shown.

    Args:
        placed: rows of ``place_candidates``, shown in a random order.
        systems: in the order of the tables.
        labels: what a place is called, for each place.
        settings: resamples, and the confidence that Holm's correction over a system's three tests keeps.
        seed: of the bootstrap.

    Returns:
        Lines ``first`` and ``five`` (shares by place), their ``_chi_square``, ``top`` (the place of most first answers)
        and ``tau``; a verdict for each system. Places are those of each user's first query, so that answers are
        independent; tau is a mean over users.
    """
    audited = Audited()
    for system in systems:
        audited.add(_audit_system(placed.filter(pl.col("system") == system), system, labels, settings, seed))
    return audited


def _audit_system(
    placed: pl.DataFrame, system: str, labels: Sequence[str], settings: EvaluateConfig, seed: int
) -> Audited:
    same, length = _comparable(placed)
    num_lists = same["list"].n_unique()
    audited, tests, top = Audited(), dict[str, ChiSquare](), ("", 0.0)
    for measure, chosen in (("first", pl.col("answered") == 0), ("five", pl.col("in_five"))) if num_lists else ():
        count_C = np.bincount(same.filter(chosen)["shown"].to_numpy(), minlength=length)
        shares_C = count_C / num_lists
        if measure == "first":
            top = labels[int(shares_C.argmax())], float(shares_C.max())
            audited.lines.append(Line(NAME, system, "top", *top, num_users=num_lists))
        audited.lines.extend(
            Line(NAME, system, measure, labels[place], float(share), num_users=num_lists)
            for place, share in enumerate(shares_C)
        )
        if found := even_spread(count_C, num_lists, 1 if measure == "first" else min(NUM_ANSWERS, length)):
            tests[measure] = found
    tau_U = user_means(correlate(placed, "shown"), ["tau"])["tau"].to_numpy()
    if not len(tau_U) or not tests:
        words = f"too few users ({num_lists}) or candidates ({length}) to test"
        audited.verdicts.append(Verdict(NAME, system, "not judged", words))
        return audited
    p_values = {measure: test.p_value for measure, test in tests.items()} | {"tau": symmetry_p_value(tau_U)}
    adjusted = dict(zip(p_values, holm(np.array([*p_values.values()])).tolist(), strict=True))
    for measure, test in tests.items():
        both = test.p_value, adjusted[measure]
        audited.lines.append(
            Line(NAME, system, f"{measure}_chi_square", "", test.statistic, None, None, *both, num_lists)
        )
    tau, both = interval_of(tau_U, settings, seed), (p_values["tau"], adjusted["tau"])
    audited.lines.append(Line(NAME, system, "tau", "", tau.value, tau.low, tau.high, *both, len(tau_U)))
    audited.verdicts.append(_verdict(system, adjusted, top, tau.value, length, 1 - settings.confidence))
    return audited


def _comparable(placed: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Lists whose places can be counted together, and their number of candidates: of each user's first query, of the
    most frequent length (of equally frequent ones the longest), and with five films named."""
    first_query = placed.filter(pl.col("cutoff") == pl.col("cutoff").min().over("user_id"))
    lengths = first_query.group_by("num_candidates").agg(lists=pl.col("list").n_unique())
    length = int(lengths.sort("lists", "num_candidates", descending=True)["num_candidates"][0])
    num_named = pl.col("in_five").sum().over("list")
    whole = first_query.filter(pl.col("num_candidates") == length, num_named == min(NUM_ANSWERS, length))
    return whole, length


def _verdict(
    system: str, adjusted: dict[str, float], top: tuple[str, float], tau: float, length: int, alpha: float
) -> Verdict:
    said = ", ".join(f"{_TESTS[measure]} {said_p(p_value)}" for measure, p_value in adjusted.items())
    if min(adjusted.values()) > alpha:
        return Verdict(NAME, system, "none", f"no preference shown ({said})")
    where, share = top
    parts = []
    if adjusted.get("first", 1.0) <= alpha:
        parts.append(f"prefers {where}: {100 * share:.0f} % of first answers, {100 / length:.0f} % expected")
    elif adjusted.get("five", 1.0) <= alpha:
        parts.append("the first five answers favour some places")
    if adjusted["tau"] <= alpha:
        parts.append(f"the order {'follows' if tau > 0 else 'runs against'} the order shown, tau {plain(tau)}")
    return Verdict(NAME, system, "found", f"{'; '.join(parts)} ({said})")
