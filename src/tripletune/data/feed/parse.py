"""Parse the files of a ratings feed: each once, in the run where it arrives; later runs read the parsed rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.config import FeedColumns, IngestConfig
from tripletune.data.release.rating_rows import PARSED, RatingsFormat
from tripletune.data.release.ratings import Parsed, parse_ratings
from tripletune.data.release.tables import TextTable
from tripletune.schemas.ingest import REJECTS
from tripletune.store.parquet import ROW_GROUP, write_parquet
from tripletune.store.paths import Facts, read_manifest
from tripletune.store.read import read_parquet


@dataclass(frozen=True, slots=True)
class FeedPart:
    """A parsed file of the feed: the finished folder of ``parse_feed_file``, and the file's name in this run."""

    folder: Path
    name: str


def parse_feed_file(path: Path, shown: str, out: Path, columns: FeedColumns, settings: IngestConfig) -> Facts:
    """Parse one file of a feed into ``rows rejects .parquet``, for reuse by later runs.

    Args:
        path: CSV with a header, plain or ``.gz``, or Parquet.
        shown: its name in messages.
        out: the work folder.
        columns: names of its columns.
        settings: valid range of ratings and times.

    Raises:
        InputError: the file is empty or cannot be read to its end, or its columns are not the expected ones.
    """
    in_file = columns.model_dump()
    hint = "name its columns in [source.feed.columns]"
    table = TextTable(file=path.name, columns=tuple(in_file.values()), quoted=True, hint=hint)
    parsed = parse_ratings(path, RatingsFormat(table, in_file, settings, shown))
    parsed.rows.write_parquet(out / "rows.parquet", compression="lz4", row_group_size=ROW_GROUP)
    write_parquet(out / "rejects.parquet", parsed.rejects)
    return {
        "movie_column": columns.movie_id,
        "rows_kept": parsed.rows.height,
        "rows_rejected": parsed.rejects.height,
    }


def load_parsed(part: FeedPart) -> Parsed:
    """Read the rows of one file, and its rejects under the file's current name."""
    manifest = read_manifest(part.folder)
    assert manifest is not None, f"{part.folder} is no finished output"
    rejects = read_parquet(part.folder / "rejects.parquet", schema=REJECTS)
    return Parsed(
        file=part.name,
        movie_column=manifest["facts"]["movie_column"],
        rows=read_parquet(part.folder / "rows.parquet", schema=PARSED),
        rejects=rejects.with_columns(file=pl.lit(part.name)),
    )
