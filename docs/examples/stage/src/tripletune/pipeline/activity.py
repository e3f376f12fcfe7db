"""The stage ``activity``: how many ratings and likes each year has."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tripletune.config import RunConfig
from tripletune.pipeline.stage import Stage
from tripletune.schemas.split import LIKE_LABELS
from tripletune.store.paths import Facts, RunPaths


def run_activity(paths: RunPaths, config: RunConfig) -> Path:
    """Count ratings and likes by year."""
    split = paths.require("split")

    def make(work: Path) -> Facts:
        rows = pl.scan_parquet(split / "shard=*" / "part.parquet", hive_partitioning=False)
        years = (
            rows.group_by(year=pl.from_epoch("timestamp", time_unit="s").dt.year())
            .agg(ratings=pl.len(), likes=pl.col("label").is_in(list(LIKE_LABELS)).sum())
            .sort("year")
            .collect()
        )
        years.write_parquet(work / "activity.parquet")
        return {"years": years.height, "ratings": int(years["ratings"].sum())}

    return paths.build("activity", make)


STAGE = Stage(
    name="activity",
    run=run_activity,
    part="shards",
    parents=("split",),
    libraries=("polars",),
    headline=("years", "ratings"),
)
