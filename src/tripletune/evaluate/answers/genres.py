"""Audit of genres: do the answers keep to the mix of genres that a user liked? (Calibration, Steck, RecSys 2018.)"""

# Shape letters in this file: U users
from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from tripletune.config import EvaluateConfig
from tripletune.evaluate.answers.popularity import CANDIDATES
from tripletune.evaluate.answers.record import Audited, Line, Verdict, interval_of, plain, user_means
from tripletune.evaluate.answers.shown import QUERY

NAME = "genres"
SMOOTHING = 0.01
"""Share of the user's own mix that is added to that of the answer, so that a missing genre has a finite divergence."""
REFERENCE = "random"
"""The system that a verdict compares with: five films drawn from the same candidates."""


def genre_mix(films: pl.DataFrame, genres: pl.DataFrame) -> pl.DataFrame:
    """Share of each genre in lists of films, a film counting once and divided evenly among its genres.

    Args:
        films: ``user_id, cutoff, movie_id``.
        genres: ``movie_id, genres``; films without one count for nothing.

    Returns:
        ``user_id, cutoff, genre, share``; shares of a query sum to 1.
    """
    each = films.join(genres, on="movie_id", how="inner", maintain_order="left").with_columns(
        weight=1 / pl.col("genres").list.len()
    )
    mass = (
        each.select(*QUERY, "weight", genre="genres")
        .explode("genre", empty_as_null=False)
        .sort(*QUERY, "genre", "weight")
        .group_by(*QUERY, "genre", maintain_order=True)
        .agg(share=pl.col("weight").sum())
    )
    return mass.with_columns(pl.col("share") / pl.col("share").sum().over(QUERY))


def divergence(liked: pl.DataFrame, named: pl.DataFrame) -> pl.DataFrame:
    """``user_id, cutoff, kl``: ``sum p log2(p / q')`` in bits with ``q' = (1 - a) q + a p`` and a = ``SMOOTHING``.

    Args:
        liked: ``genre_mix`` of the liked films, p.
        named: ``genre_mix`` of an answer, q; a query that it lacks has no line.
    """
    asked = named.select(QUERY).unique()
    both = liked.join(asked, on=QUERY, how="semi").join(
        named.rename({"share": "named"}), on=[*QUERY, "genre"], how="left"
    )
    p = pl.col("share")
    smoothed = (1 - SMOOTHING) * pl.col("named").fill_null(0.0) + SMOOTHING * p
    terms = both.with_columns(term=p * (p / smoothed).log(2.0)).sort(*QUERY, "genre")
    return terms.group_by(QUERY, maintain_order=True).agg(kl=pl.col("term").sum())


def audit_genres(
    placed: pl.DataFrame,
    likes: pl.DataFrame,
    genres: pl.DataFrame,
    systems: Sequence[str],
    *,
    settings: EvaluateConfig,
    seed: int,
) -> Audited:
    """Divergence of the genres of the first five films from those of the films the user liked before the query.

    Args:
        placed: rows of ``place_candidates``.
        likes: ``user_id, cutoff, movie_id``.
        genres: ``movie_id, genres``.
        systems: in the order of the tables.
        settings, seed: of the intervals.

    Returns:
        Lines ``kl`` of the candidates and of each system, ``kl_over_random`` and a verdict for each system but
        ``REFERENCE``: a list of five diverges more than one of twenty by its length alone.
    """
    has_genre = genres.filter(pl.col("genres").list.len() > 0)
    liked = genre_mix(likes, has_genre)
    shown = placed.unique([*QUERY, "movie_id"], maintain_order=True)
    lists = {CANDIDATES: shown} | {
        system: placed.filter(pl.col("in_five"), pl.col("system") == system) for system in systems
    }
    of_row = {row: user_means(divergence(liked, genre_mix(films, has_genre)), ["kl"]) for row, films in lists.items()}
    audited = Audited()
    for row, of_users in of_row.items():
        if of_users.height:
            found = interval_of(of_users["kl"].to_numpy(), settings, seed)
            audited.lines.append(
                Line(NAME, row, "kl", "", found.value, found.low, found.high, num_users=found.num_viewers)
            )
        if row not in (CANDIDATES, REFERENCE):
            audited.add(_compare(row, of_users, of_row[REFERENCE], settings, seed))
    return audited


def _compare(
    system: str, of_users: pl.DataFrame, reference: pl.DataFrame, settings: EvaluateConfig, seed: int
) -> Audited:
    both = of_users.join(reference.rename({"kl": "random"}), on="user_id", maintain_order="left")
    if both.height < 2:
        return Audited([], [Verdict(NAME, system, "not judged", "too few users with genres in likes and answers")])
    more = interval_of((both["kl"] - both["random"]).to_numpy(), settings, seed)
    line = Line(NAME, system, "kl_over_random", "", more.value, more.low, more.high, num_users=more.num_viewers)
    low, high = more.low or 0.0, more.high or 0.0
    said = f"{plain(more.value)} bits, {plain(low)} to {plain(high)}, from five random candidates"
    if low > 0:
        return Audited([line], [Verdict(NAME, system, "found", f"further from the liked genres ({said})")])
    closer = "closer to the liked genres" if high < 0 else "no difference shown"
    return Audited([line], [Verdict(NAME, system, "none", f"{closer} ({said})")])
