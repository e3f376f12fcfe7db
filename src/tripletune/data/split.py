"""Leave-last-out split of ratings, per viewer and in time order.

The newest like is ``test``, the one before ``valid``, up to ``max_target`` before those are ``target`` (the answers of
training examples) and the rest is ``graph``; every other rating is ``other``. A small fold of viewers is marked unseen.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from tripletune.config import SplitConfig
from tripletune.paths import Facts, write_atomically
from tripletune.schemas import RATINGS, SPLIT, SPLIT_LABELS, conform
from tripletune.stable_hash import mix, pair_hash_expr, share_hash_expr

_ROW_GROUP = 1 << 18


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
    likes = is_like.sum().over("user_id")
    age = likes - is_like.cum_sum().over("user_id")  # 0 for the newest like
    spare = likes.cast(pl.Int32) - (settings.min_graph + 2)
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
        .select(
            "user_id",
            "movie_id",
            "rating",
            "timestamp",
            position=pl.int_range(pl.len(), dtype=pl.Int32).over("user_id"),
            label=label.cast(SPLIT_LABELS),
            unseen=share_hash_expr("user_id", seed) < settings.unseen_share,
        )
    )


def write_split(ratings: Path, out: Path, settings: SplitConfig, seed: int) -> Facts:
    """Split and write ``out/shard=NNN/part.parquet``, one per bucket of viewers, each sorted by user and position.

    Returns:
        Counts of rows, viewers, unseen viewers, likes and of each label.
    """
    labelled = conform(split_ratings(pl.scan_parquet(ratings, schema=RATINGS), settings, seed).collect(), SPLIT)
    bucket = pl.Series("bucket", mix(labelled["user_id"], seed) % np.uint64(settings.shards), dtype=pl.Int16)
    for number in range(settings.shards):
        folder = out / f"shard={number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        part = labelled.filter(bucket == number)
        write = partial(part.write_parquet, compression="zstd", row_group_size=_ROW_GROUP)
        write_atomically(folder / "part.parquet", write)
    return _facts(labelled, settings)


def _facts(labelled: pl.DataFrame, settings: SplitConfig) -> Facts:
    labels = dict(labelled.group_by("label").len().iter_rows())
    counts = {name: int(labels.get(name, 0)) for name in SPLIT_LABELS.categories}
    return {
        "rows_in": labelled.height,
        "rows_kept": labelled.height,
        "viewers": labelled["user_id"].n_unique(),
        "unseen_viewers": labelled.filter("unseen")["user_id"].n_unique(),
        "likes": labelled.height - counts["other"],
        "labels": counts,
        "shards": settings.shards,
    }
