"""Read Parquet files by their paths as they are: polars takes ``*``, ``?`` and ``[`` of a path for a pattern."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl


def read_parquet(source: Path | list[Path], **options: Any) -> pl.DataFrame:
    """``polars.read_parquet`` of a file, or of files one after the other, whatever their folders are named."""
    return pl.read_parquet(source, glob=False, **options)


def scan_parquet(source: Path | list[Path], **options: Any) -> pl.LazyFrame:
    """``polars.scan_parquet`` of a file, or of files one after the other, whatever their folders are named."""
    return pl.scan_parquet(source, glob=False, **options)
