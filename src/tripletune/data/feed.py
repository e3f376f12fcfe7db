"""The files of a feed of ratings: each is parsed once, in whatever night it arrives, and read back from then on."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tripletune.config import FeedColumns, IngestConfig
from tripletune.data.ratings import PARSED, Parsed, RatingsFormat, parse_ratings
from tripletune.data.tables import TextTable
from tripletune.paths import Facts, read_manifest
from tripletune.schemas import REJECTS

_ROW_GROUP = 1 << 18


def parse_feed_file(path: Path, name: str, out: Path, columns: FeedColumns, settings: IngestConfig) -> Facts:
    """Parse one file of a feed into ``rows rejects .parquet``, so that a later night need not.

    Args:
        path: CSV with a header, plain or ``.gz``, or Parquet.
        name: what to call it in the rejects.
        out: the work folder.
        columns: what its columns are called.
        settings: domain of a rating and of its time.

    Raises:
        InputError: the file is empty or cannot be read to its end, or lacks a column.
    """
    told = columns.model_dump()
    table = TextTable(file=name, columns=tuple(told.values()), quoted=True)
    parsed = parse_ratings(path, RatingsFormat(table, told, settings))
    parsed.rows.write_parquet(out / "rows.parquet", compression="lz4", row_group_size=_ROW_GROUP)
    parsed.rejects.write_parquet(out / "rejects.parquet")
    return {
        "file": name,
        "movie_column": columns.movie_id,
        "rows_kept": parsed.rows.height,
        "rows_rejected": parsed.rejects.height,
    }


def load_parsed(folder: Path) -> Parsed:
    """What ``parse_feed_file`` wrote into a folder that is finished by now."""
    manifest = read_manifest(folder)
    assert manifest is not None, f"{folder} is no finished output"
    return Parsed(
        file=manifest["facts"]["file"],
        movie_column=manifest["facts"]["movie_column"],
        rows=pl.read_parquet(folder / "rows.parquet", schema=PARSED),
        rejects=pl.read_parquet(folder / "rejects.parquet", schema=REJECTS),
    )
