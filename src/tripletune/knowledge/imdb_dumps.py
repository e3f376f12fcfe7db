"""Stream one of IMDb's dumps (``.tsv.gz``) and keep the rows of the requested ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.errors import InputError

_MISSING = {"\\N": None, "": None}


@dataclass(frozen=True, slots=True)
class Dump:
    """``rows``: the requested columns, all strings, null for ``\\N``; ``malformed``: lines of the whole dump that were
    dropped because their number of fields is not the header's."""

    rows: pl.DataFrame
    malformed: int


def dump_path(folder: Path, table: str) -> Path:
    """Path of a dump."""
    return folder / f"{table}.tsv.gz"


def read_dump(folder: Path, table: str, columns: tuple[str, ...], ids: pl.Series) -> Dump:
    """Read the rows of a dump with a requested id; others are never kept in memory.

    Lines are split at tabs here: a CSV reader silently pads short lines and truncates long ones, so a line that lost a
    tab would give someone else's credit.

    Args:
        folder: of the dumps.
        table: name of the dump, such as ``title.crew``.
        columns: to read; the first holds the id, and is the first of the file.
        ids: the requested ids.

    Raises:
        InputError: the file is missing, empty, truncated, damaged or not UTF-8, has other columns, or most of its lines
            are malformed.
    """
    path = dump_path(folder, table)
    if not path.is_file():
        raise InputError(f"{folder} has no {path.name}; put IMDb's {path.name} there")
    try:
        fields = _fields(path, columns)
        lines = _lines(path, fields)
        asked = ids.drop_nulls().unique().alias("_id").to_frame().lazy()
        split = pl.col("_text").str.split_exact("\t", len(fields) - 1).struct.rename_fields(fields)
        wanted = lines.filter("_whole").join(asked, on="_id", how="semi").select(split.struct.unnest())
        rows, counts = pl.collect_all(
            [
                wanted.select(pl.col(name).replace(_MISSING) for name in columns),
                lines.select(total=pl.len(), whole=pl.col("_whole").sum()),
            ],
            engine="streaming",
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} cannot be read ({_first_line(error)}); fetch it again") from None
    total, whole = counts.row(0)
    if whole < total - whole:
        raise InputError(
            f"{path}: {total - whole} of {total} lines have not the {len(fields)} fields of the first; fetch it again"
        )
    return Dump(rows, total - whole)


def _fields(path: Path, columns: tuple[str, ...]) -> list[str]:
    """Column names of the header."""
    first = pl.scan_lines(path, name="text", n_rows=1, glob=False).collect(engine="streaming")["text"].to_list()
    if not first or not first[0].strip():
        raise InputError(f"{path} is empty; fetch it again")
    names: list[str] = first[0].removeprefix("\ufeff").split("\t")
    missing = [name for name in columns if names.count(name) != 1]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; expected IMDb's {', '.join(columns)}")
    if names[0] != columns[0]:
        raise InputError(f"{path} begins with column {names[0]!r}; expected {columns[0]!r} in the first place")
    return names


def _lines(path: Path, fields: list[str]) -> pl.LazyFrame:
    """``_text`` of each non-blank line, its ``_id``, and ``_whole``: whether it has the header's number of fields."""
    text = pl.col("_text")
    return (
        pl.scan_lines(path, name="_text", glob=False)
        .filter(text != "")
        .with_columns(
            _id=text.str.splitn("\t", 2).struct.field("field_0"),
            _whole=text.str.count_matches("\t", literal=True) == len(fields) - 1,
        )
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
