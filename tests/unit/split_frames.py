"""A split in memory, as ``split_shard`` makes it of one shard with everybody."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from tripletune.config import SplitConfig
from tripletune.data.split.frozen import Frozen
from tripletune.data.split.history import read_ratings
from tripletune.data.split.write import split_shard


def split_ratings(ratings: pl.DataFrame, settings: SplitConfig, seed: int) -> pl.DataFrame:
    """The split of ratings whose users may be in any order; sorted by user and position."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ratings.parquet"
        ratings.sort("user_id", maintain_order=True).write_parquet(path)
        grouped = read_ratings(path)
    frozen = Frozen.read(Path(settings.frozen), settings) if settings.frozen else None
    return split_shard(grouped, np.arange(grouped.num_viewers), settings, seed, frozen)[0]
