"""A split in memory, as ``split_shard`` makes it of one shard with everybody."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from tripletune.config import SplitConfig
from tripletune.data.split.frozen import Frozen
from tripletune.data.split.history import read_ratings
from tripletune.data.split.write import drop_rare, split_shard
from tripletune.schemas.ingest import ORDER, RATINGS


def split_ratings(ratings: pl.DataFrame, settings: SplitConfig, seed: int) -> pl.DataFrame:
    """The split of ratings whose users may be in any order; sorted by user and position.

    Args:
        ratings: columns of RATINGS, and of ORDER for ``tie_order = "file"``.
    """
    with TemporaryDirectory() as folder:
        path, order = Path(folder) / "ratings.parquet", Path(folder) / "order.parquet"
        ratings = ratings.sort("user_id", maintain_order=True)
        ratings.select(*RATINGS).write_parquet(path)
        if "row" in ratings.columns:
            ratings.select(*ORDER).write_parquet(order)
        grouped = drop_rare(read_ratings(path, order if order.is_file() else None), settings.min_interactions)
    frozen = Frozen.read(Path(settings.frozen), settings) if settings.frozen else None
    return split_shard(grouped, np.arange(grouped.num_viewers), settings, seed, frozen)[0]
