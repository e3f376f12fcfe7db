"""Read and write the Parquet files of a stage's folder.

A folder's files are those its manifest names, or all while it is still a work folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from tripletune.errors import InputError
from tripletune.schemas.base import conform
from tripletune.store.files import write_atomically
from tripletune.store.paths import MANIFEST
from tripletune.store.read import read_parquet, scan_parquet

ROW_GROUP = 1 << 18
"""Rows in a row group of the large tables that are read whole."""


def write_parquet(
    path: Path,
    frame: pl.DataFrame,
    *,
    row_group_size: int | None = None,
    metadata: dict[str, str] | None = None,
    unique: bool = False,
) -> None:
    """Write a frame under a temporary name, compressed with zstd, flush it to disk and rename it into place.

    The bytes follow the frame's chunks: rechunk first where their number depends on threads.

    Args:
        path: the file.
        frame: its rows.
        row_group_size: rows in a row group; None: polars' own choice.
        metadata: text for the file's footer.
        unique: as in ``write_atomically``.
    """

    def write(part: Path) -> None:
        frame.write_parquet(part, compression="zstd", row_group_size=row_group_size, metadata=metadata)

    write_atomically(path, write, unique=unique)


def parquet_files(folder: Path, below: str = "") -> list[Path]:
    """The Parquet files of a folder, sorted by name; a stray file that the manifest does not name is not data.

    Args:
        folder: a stage's output; without a manifest every Parquet file in it counts.
        below: only files in this sub-folder, such as ``test``.

    Raises:
        InputError: there is none, or the manifest cannot be read.
    """
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            names = list(json.loads(manifest.read_text(encoding="utf-8"))["files"])
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{manifest} is damaged: expected JSON with 'files'; delete the folder and run the stage again"
            ) from None
        found = [folder / name for name in names]
    else:
        found = [path for path in folder.rglob("*") if not path.name.startswith(".")]
    start = folder / below
    files = sorted(path for path in found if path.suffix == ".parquet" and path.is_relative_to(start))
    if not files:
        raise InputError(f"no Parquet files in {start}; run the stage that writes them, or give its output folder")
    return files


def scan(files: list[Path] | Path) -> pl.LazyFrame:
    """Read the named files only, and take no column from their folders' names (``shard=000``)."""
    return scan_parquet(files, hive_partitioning=False)


def joined(messages: str) -> pl.Expr:
    """The text of all messages of a chat, one after the other."""
    return pl.col(messages).list.eval(pl.element().struct.field("content")).list.join("\n")


def read_rows(path: Path, schema: pl.Schema) -> pl.DataFrame:
    """One file, with the columns of its schema.

    Raises:
        InputError: it cannot be read, or has other columns.
    """
    try:
        return conform(read_parquet(path, hive_partitioning=False), schema)
    except (pl.exceptions.PolarsError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as {', '.join(list(schema)[:3])}, ...: {first_line}; run its stage again"
        ) from None
