"""How popular films are in the rows that a fit is trained on."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tripletune.schemas.query import FIT_LABELS, FIT_OF
from tripletune.store.parquet import scan
from tripletune.store.shards import split_files


def film_popularity(split: Path) -> dict[str, pl.DataFrame]:
    """By purpose, popularity of films in the rows of the fit that writes its hints: ``movie_id, likes, quantile``.

    ``quantile`` is the share of all likes that belong to films with fewer likes, and half of those with as many. Films
    without a like have no row.
    """
    rows = scan(list(split_files(split).values())).filter(~pl.col("unseen"))
    counts = (
        rows.group_by("movie_id", pl.col("label").cast(pl.String))
        .agg(likes=pl.len().cast(pl.Int64))
        .collect(engine="streaming")
    )
    by_fit = {fit: _quantiles(counts.filter(pl.col("label").is_in(labels))) for fit, labels in FIT_LABELS.items()}
    return {purpose: by_fit[fit] for purpose, fit in FIT_OF.items()}


def _quantiles(counts: pl.DataFrame) -> pl.DataFrame:
    films = counts.group_by("movie_id").agg(pl.col("likes").sum())
    levels = films.group_by("likes").agg(mass=pl.col("likes").sum()).sort("likes")
    # films of equal likes share the middle of their interval
    middle = (pl.col("mass").cum_sum() - pl.col("mass") / 2) / pl.col("mass").sum()
    return films.join(levels.select("likes", quantile=middle), on="likes").sort("movie_id")


def num_fit_users(split: Path, purpose: str) -> int:
    """Number of users with a like in the rows that ``film_popularity`` counts for a purpose."""
    rows = scan(list(split_files(split).values())).filter(~pl.col("unseen"))
    likes = rows.filter(pl.col("label").cast(pl.String).is_in(FIT_LABELS[FIT_OF[purpose]]))
    return int(likes.select(pl.col("user_id").n_unique()).collect(engine="streaming").item())
