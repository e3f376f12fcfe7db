"""Parse one file of ratings, text or Parquet; bad rows are rejected by line number."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.data.release.rating_rows import PARSED, RatingsFormat
from tripletune.data.release.ratings_parquet import parquet_parts
from tripletune.data.release.ratings_text import text_parts
from tripletune.schemas.ingest import REJECTS


@dataclass(frozen=True, slots=True)
class Parsed:
    """The ratings of one file.

    Args:
        file: its name, as in the rejects.
        movie_column: name of its film column.
        rows: schema PARSED, in the order of the file; each passes the rules for single rows.
        rejects: schema REJECTS.
    """

    file: str
    movie_column: str
    rows: pl.DataFrame
    rejects: pl.DataFrame


def parse_ratings(path: Path, form: RatingsFormat) -> Parsed:
    """Read the ratings of one file: Parquet, or text, plain or ``.gz``.

    Raises:
        InputError: the file is empty or cannot be read to its end, or its columns are not the expected ones.
    """
    parts = parquet_parts(path, form) if path.suffix.lower() == ".parquet" else text_parts(path, form)
    rows, rejects = [pl.DataFrame(schema=PARSED)], [pl.DataFrame(schema=REJECTS)]
    for part in parts:
        rows.append(part.kept)
        rejects.append(part.rejects)
    return Parsed(form.table.file, form.columns["movie_id"], pl.concat(rows, rechunk=False), pl.concat(rejects))
