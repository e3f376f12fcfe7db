"""Leave-last-out split of ratings, per viewer and in time order.

The newest like is ``test``, the one before ``valid``, up to ``max_target`` before those are ``target`` (the answers of
training examples) and the rest is ``graph``; every other rating is ``other``. A small fold of viewers is marked unseen.
"""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from tripletune.config import SplitConfig
from tripletune.paths import Facts, write_atomically
from tripletune.schemas import RATINGS, SPLIT, SPLIT_LABELS, conform
from tripletune.stable_hash import mix, pair_hash_expr, share_hash_expr

_ROW_GROUP = 1 << 18
_PIECE = 1 << 21
"""Ratings split at a time: bounds the memory of a sort and keeps it in the cache."""


def split_ratings(ratings: pl.LazyFrame, settings: SplitConfig, seed: int) -> pl.LazyFrame:
    """Label each rating and number each viewer's rows in time order.

    Timestamps are whole seconds and often tie within a viewer; ties are ordered by a seeded hash of (user, movie),
    which is one-to-one within a viewer: row order would make the split random, and movie ids leak the answer.

    Args:
        ratings: columns of ``RATINGS``, a (user, movie) pair at most once. Any row order.
        settings: thresholds, and how many likes each label takes.
        seed: orders ties and draws the unseen viewers.

    Returns:
        Columns of ``SPLIT``, sorted by user and position. Lazy: nothing is read.
    """
    is_like = pl.col("rating") >= pl.lit(settings.like, pl.Float32)
    age = pl.col("likes") - pl.col("likes_so_far")  # 0 for the newest like
    spare = pl.col("likes") - (settings.min_graph + 2)
    label = (
        pl.when(~is_like)
        .then(pl.lit("other"))
        .when(spare < 0)
        .then(pl.lit("graph"))
        .when(age == 0)
        .then(pl.lit("test"))
        .when(age == 1)
        .then(pl.lit("valid"))
        .when(age < 2 + pl.min_horizontal(spare, pl.lit(settings.max_target)))
        .then(pl.lit("target"))
        .otherwise(pl.lit("graph"))
    )
    return (
        ratings.with_columns(tie=pair_hash_expr("user_id", "movie_id", seed))
        .sort("user_id", "timestamp", "tie")
        .with_columns(
            position=pl.int_range(pl.len(), dtype=pl.Int32).over("user_id"),
            likes=is_like.sum().cast(pl.Int32).over("user_id"),
            likes_so_far=is_like.cum_sum().cast(pl.Int32).over("user_id"),
        )
        .with_columns(label=label.cast(SPLIT_LABELS), unseen=share_hash_expr("user_id", seed) < settings.unseen_share)
        .select(*SPLIT)
    )


def write_split(ratings: Path, out: Path, settings: SplitConfig, seed: int) -> Facts:
    """Split and write ``out/shard=NNN/part.parquet``, one per bucket of viewers, each sorted by user and position.

    Args:
        ratings: Parquet, schema RATINGS, sorted by user.
        out: the work folder.
        settings: as in ``split_ratings``, and the number of shards.
        seed: as in ``split_ratings``; also draws the bucket of a viewer.

    Returns:
        Counts of rows, viewers, unseen viewers, likes and of each label.
    """
    shards: list[list[pl.DataFrame]] = [[pl.DataFrame(schema=SPLIT)] for _ in range(settings.shards)]
    scan = pl.scan_parquet(ratings, schema=RATINGS)
    for start, end in itertools.pairwise(_viewer_bounds(scan)):
        labelled = conform(split_ratings(scan.slice(start, end - start), settings, seed).collect(), SPLIT)
        bucket = pl.Series(mix(labelled["user_id"], seed) % np.uint64(settings.shards), dtype=pl.UInt16)
        for number, parts in enumerate(shards):
            parts.append(labelled.filter(bucket == number))
    facts: Facts = {}
    for number, parts in enumerate(shards):
        folder = out / f"shard={number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        shard = pl.concat(parts)
        parts.clear()
        write_atomically(
            folder / "part.parquet", partial(shard.write_parquet, compression="zstd", row_group_size=_ROW_GROUP)
        )
        _count(shard, facts)
    return {"rows_in": facts["rows_kept"], **facts, "shards": settings.shards}


def _viewer_bounds(scan: pl.LazyFrame) -> list[int]:
    """Row numbers that cut the ratings into pieces of about ``_PIECE`` rows, never inside a viewer; first and last."""
    users = scan.select("user_id").collect()["user_id"]
    firsts = np.flatnonzero(np.diff(users.to_numpy(), prepend=np.int32(-1)))
    cuts = np.searchsorted(firsts, np.arange(_PIECE, users.len(), _PIECE))
    return sorted({0, *firsts[cuts[cuts < len(firsts)]].tolist(), users.len()})


def _count(shard: pl.DataFrame, facts: Facts) -> None:
    """Add a shard's counts to the facts."""
    first_rows = shard.filter(pl.col("position") == 0)
    # numbers of the labels, because grouping 32 million rows by text takes seconds
    per_label = np.bincount(shard["label"].to_physical(), minlength=len(SPLIT_LABELS.categories)).tolist()
    labels = dict(zip(SPLIT_LABELS.categories, per_label, strict=True))
    counts = {
        "rows_kept": shard.height,
        "viewers": first_rows.height,
        "unseen_viewers": int(first_rows["unseen"].sum()),
        "likes": shard.height - labels["other"],
    }
    for name, count in counts.items():
        facts[name] = facts.get(name, 0) + count
    known = facts.get("labels", dict.fromkeys(labels, 0))
    facts["labels"] = {name: known[name] + count for name, count in labels.items()}
