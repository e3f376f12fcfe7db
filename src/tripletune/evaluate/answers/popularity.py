"""Audit of popularity: does the model put popular films first, and how many different films does it name?

Popularity is that of the likes which the fit of the test queries was trained on. Every measure is of the first five
films of an answer, and stands next to the same of all candidates and of the held-out films, which users did like.
"""

# Shape letters in this file: U users, I films of the catalogue
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

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
from tripletune.evaluate.answers.shown import QUERY, correlate

NAME = "popularity"
CANDIDATES, HELD_OUT = "candidates", "held-out films"
"""Rows that are no systems: all films shown, and the film each user liked."""
TAIL = 0.2
"""The long tail: the least liked films that together have a fifth of all likes, and films without any."""
COPIED = 0.8
"""Rank correlation from which on an order is called one by popularity: nine of ten pairs are in the order of likes."""
MEASURES = ("likes", "novelty", "tail")
"""Means over films, then over users; all but these measures are of all answers together."""


def film_measures(popularity: pl.DataFrame, num_users: int) -> pl.DataFrame:
    """``movie_id, likes, novelty, tail`` of the films that have likes.

    Args:
        popularity: ``movie_id, likes, quantile`` of ``store.popularity.film_popularity``.
        num_users: users of that fit.

    Returns:
        ``novelty``: self-information ``-log2(likes / users)`` in bits (Zhou et al., PNAS 2010), ``tail``: whether the
        film belongs to the long tail.
    """
    return popularity.select(
        "movie_id",
        "likes",
        novelty=-(pl.col("likes") / num_users).log(2.0),
        tail=(pl.col("quantile") < TAIL).cast(pl.Float64),
    )


def gini(count_I: npt.NDArray[np.int64]) -> float:
    """Gini coefficient of counts: 0 where all films are named equally often, near 1 where few films are named alone.

    ``sum((2 i - I - 1) x_i) / (I sum(x))`` over the counts in ascending order, as in RecBole. 0 without any count.
    """
    num_films, total = len(count_I), count_I.sum()
    weight_I = 2 * np.arange(1, num_films + 1) - num_films - 1
    return float((weight_I * np.sort(count_I)).sum() / (num_films * total)) if total else 0.0


def audit_popularity(
    placed: pl.DataFrame,
    held_out: pl.DataFrame,
    films: pl.DataFrame,
    systems: Sequence[str],
    *,
    num_films: int,
    num_users: int,
    settings: EvaluateConfig,
    seed: int,
) -> Audited:
    """Popularity, novelty, share of the long tail, coverage and concentration of the answers, and of what was shown.

    Args:
        placed: rows of ``place_candidates``.
        held_out: ``user_id, cutoff, movie_id``: the film liked at each query.
        films: ``film_measures``.
        systems: in the order of the tables.
        num_films: films of the catalogue.
        num_users: users of the fit; a film without a like counts as one with half a like.
        settings, seed: of the intervals.

    Returns:
        Lines ``likes``, ``novelty``, ``tail``, ``coverage`` and ``gini`` of systems, candidates and held-out films;
        ``likes_over_candidates`` and ``tau`` of systems; a verdict for each system.
    """
    unknown = {"likes": 0, "novelty": -np.log2(0.5 / num_users), "tail": 1.0}
    known = placed.join(films, on="movie_id", how="left", maintain_order="left")
    known = known.with_columns(pl.col(name).fill_null(value) for name, value in unknown.items())
    shown = known.unique([*QUERY, "movie_id"], maintain_order=True)
    liked = held_out.join(films, on="movie_id", how="left", maintain_order="left").with_columns(
        pl.col(name).fill_null(value) for name, value in unknown.items()
    )
    audited = Audited()
    for row, named in ((HELD_OUT, liked), (CANDIDATES, shown)):
        audited.lines.extend(_measure(row, named, num_films, settings, seed))
    for system in systems:
        answers = known.filter(pl.col("system") == system)
        audited.lines.extend(_measure(system, answers.filter("in_five"), num_films, settings, seed))
        audited.add(_compare(system, answers, settings, seed))
    return audited


def _measure(row: str, named: pl.DataFrame, num_films: int, settings: EvaluateConfig, seed: int) -> list[Line]:
    of_users = user_means(named.group_by(QUERY, maintain_order=True).agg(pl.col(MEASURES).mean()), MEASURES)
    lines = []
    for name in MEASURES:
        found = interval_of(of_users[name].to_numpy(), settings, seed)
        lines.append(Line(NAME, row, name, "", found.value, found.low, found.high, num_users=found.num_viewers))
    counts = named.group_by("movie_id").len().sort("movie_id")["len"].to_numpy().astype(np.int64)
    spread = {"coverage": len(counts) / num_films, "gini": gini(np.pad(counts, (max(0, num_films - len(counts)), 0)))}
    return [*lines, *(Line(NAME, row, name, "", value, num_users=of_users.height) for name, value in spread.items())]


def _compare(system: str, answers: pl.DataFrame, settings: EvaluateConfig, seed: int) -> Audited:
    """Likes of the first five against those of the candidates, and the order's correlation with likes."""
    by_query = answers.group_by(QUERY, maintain_order=True).agg(
        five=pl.col("likes").filter("in_five").mean(), shown=pl.col("likes").mean()
    )
    of_users = user_means(by_query, ["five", "shown"])
    more = interval_of((of_users["five"] - of_users["shown"]).to_numpy(), settings, seed)
    over = Line(NAME, system, "likes_over_candidates", "", more.value, more.low, more.high, num_users=more.num_viewers)
    # many likes are a small place, so that a positive tau says: popular films first
    tau_U = user_means(correlate(answers.with_columns(rarity=-pl.col("likes")), "rarity"), ["tau"])["tau"].to_numpy()
    if len(tau_U) < 2:
        words = "too few users whose candidates differ in likes"
        return Audited([over], [Verdict(NAME, system, "not judged", words)])
    tau, p_value = interval_of(tau_U, settings, seed), symmetry_p_value(tau_U)
    line = Line(NAME, system, "tau", "", tau.value, tau.low, tau.high, p_value, p_value, len(tau_U))
    times = float(of_users["five"].to_numpy().sum() / max(1.0, of_users["shown"].to_numpy().sum()))
    said = f"tau {plain(tau.value)}, {said_p(p_value)}; the first five have {plain(times)} times the candidates' likes"
    if p_value > 1 - settings.confidence:
        return Audited([over, line], [Verdict(NAME, system, "none", f"no preference shown ({said})")])
    if tau.value >= COPIED:
        words = "orders the candidates by popularity"
    else:
        words = f"leans to {'popular' if tau.value > 0 else 'less popular'} films"
    return Audited([over, line], [Verdict(NAME, system, "found", f"{words} ({said})")])
