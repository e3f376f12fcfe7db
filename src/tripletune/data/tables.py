"""Exact reading of delimited text: every row arrives as it stands in the file, or is rejected with its line number.

CSV readers repair, skip or stop at damaged lines. Here a table is read line by line (vectorised), lines with quotes go
through the standard library's strict CSV parser, and a line that is no record costs itself and nothing else.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.errors import InputError
from tripletune.schemas import REJECTS, conform

MAX_RECORD_LINES = 100
"""A quoted field that runs over more lines than this is an unclosed quote, not text."""
CLIP = 200
"""Characters of a refused value that are kept."""
_CHUNK = 1 << 24
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """How one table stands in a text file.

    Args:
        file: name of the file.
        columns: names of its fields, in order.
        separator: what stands between fields.
        header: whether the first line holds the names.
        quoted: whether fields may stand in double quotes, and hold separators and line breaks then.
        encoding: what the file is in when it is not UTF-8. Empty: lines that are not UTF-8 are rejected.
    """

    file: str
    columns: tuple[str, ...]
    separator: str = ","
    header: bool = True
    quoted: bool = False
    encoding: str = ""

    def describe(self) -> str:
        """The expected line, for error messages."""
        kind = "the header" if self.header else "lines of"
        return f"{kind} {self.separator.join(self.columns)!r}"


@dataclass(frozen=True, slots=True)
class Records:
    """``rows``: ``line`` and the fields as strings; ``rejects``: schema REJECTS, for the lines that are no records."""

    rows: pl.DataFrame
    rejects: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Check:
    """A rule of one field: rows where ``fails`` is true are refused with the ``reason``."""

    column: str
    fails: pl.Expr
    reason: str


@dataclass(frozen=True, slots=True)
class Sifted:
    """``kept`` rows, and the others as schema REJECTS."""

    kept: pl.DataFrame
    rejects: pl.DataFrame


def scan_text(path: Path, table: TextTable, scratch: Path) -> pl.LazyFrame:
    """The lines of a file below its header.

    Returns:
        ``line`` (UInt32, from 1, the header included) and ``text``, without its line end.

    Raises:
        InputError: the file is empty or its header is not the expected one.
    """
    lines = pl.scan_lines(_as_utf8(path, table, scratch), name="text", row_index_name="line", row_index_offset=1)
    first = lines.head(1).collect()["text"].to_list()
    if not first or (first[0] == "" and path.stat().st_size < CLIP and not path.read_bytes().strip()):
        raise InputError(f"{path} is empty; expected {table.describe()}")
    if not table.header:
        return lines
    header = first[0].removeprefix("\ufeff")
    names = tuple(name.strip().strip('"') for name in header.split(table.separator))
    if names != table.columns:
        raise InputError(f"{path} line 1 reads {header[:CLIP]!r}; expected {table.describe()}")
    return lines.filter(pl.col("line") > 1)


def split_fields(lines: pl.LazyFrame, table: TextTable) -> pl.LazyFrame:
    """Split lines without quotes into fields; blank lines are no rows.

    Returns:
        ``line``, one String column per field, and ``whole``: whether the line has exactly as many fields.
    """
    number = len(table.columns)
    # one field more than expected: it is null exactly when the line is not too long
    fields = pl.col("text").str.split_exact(table.separator, number).struct
    return (
        lines.filter(pl.col("text") != "")
        .select("line", fields.rename_fields([*table.columns, "_more"]).struct.unnest())
        .select("line", *table.columns, whole=pl.col("_more").is_null() & pl.col(table.columns[-1]).is_not_null())
    )


def read_records(path: Path, table: TextTable, scratch: Path) -> Records:
    """Read a table of strings.

    Raises:
        InputError: the file is empty or its header is not the expected one.
    """
    lines = scan_text(path, table, scratch).collect()
    wrong = pl.col("text").str.contains(_REPLACEMENT, literal=True) if not _is_utf8(path) else pl.lit(False)
    undecodable = lines.filter(wrong) if not table.encoding else lines.clear()
    lines = lines.join(undecodable, on="line", how="anti", maintain_order="left")
    quoted = _quoted_records(lines, table) if table.quoted else _Quoted([], [], [])
    plain = split_fields(lines.filter(~_among(quoted.lines)).lazy(), table).collect()
    strings = dict.fromkeys(table.columns, pl.String)
    parsed = pl.DataFrame(quoted.records, schema={"line": pl.UInt32, **strings}, orient="row")
    rows = pl.concat([plain.filter("whole").drop("whole"), parsed]).sort("line")
    short = lines.join(plain.filter(~pl.col("whole")), on="line", how="semi", maintain_order="left")
    bad = lines.filter(_among(quoted.bad))
    rejects = pl.concat(
        [
            line_rejects(undecodable, table, "not UTF-8"),
            line_rejects(pl.concat([short, bad]), table, not_a_record(table)),
        ]
    )
    return Records(rows, rejects.sort("line"))


def line_rejects(lines: pl.DataFrame, table: TextTable, reason: str) -> pl.DataFrame:
    """Rejects (schema REJECTS) for whole lines, given as ``line`` and ``text``."""
    return _rejects(lines, table, pl.lit(None, pl.String), pl.col("text"), reason)


def not_a_record(table: TextTable) -> str:
    """Why a line with too few or too many fields, or an open quote, was refused."""
    return f"not {len(table.columns)} fields separated by {table.separator!r}"


def first_fault(checks: Sequence[Check]) -> pl.Expr:
    """Index of the first check that a row fails, as UInt8; null for a good row."""
    faults = [pl.when(check.fails).then(pl.lit(index, pl.UInt8)) for index, check in enumerate(checks)]
    return pl.coalesce(faults)


def sift(records: Records, table: TextTable, checks: Sequence[Check]) -> Sifted:
    """Keep the rows that pass every check; a refused row is named by the first check it fails."""
    rows = records.rows.with_columns(_fault=first_fault(checks))
    rejects = [records.rejects]
    rejects += [
        field_rejects(rows.filter(pl.col("_fault") == index), table, check) for index, check in enumerate(checks)
    ]
    return Sifted(rows.filter(pl.col("_fault").is_null()).drop("_fault"), pl.concat(rejects).sort("line"))


def field_rejects(rows: pl.DataFrame, table: TextTable, check: Check) -> pl.DataFrame:
    """Rejects (schema REJECTS) for rows of strings that fail a check; ``line`` is one of the columns."""
    return _rejects(rows, table, pl.lit(check.column), pl.col(check.column), check.reason)


def _rejects(rows: pl.DataFrame, table: TextTable, column: pl.Expr, value: pl.Expr, reason: str) -> pl.DataFrame:
    told = rows.select(
        "line", file=pl.lit(table.file), column=column, value=value.str.slice(0, CLIP), reason=pl.lit(reason)
    )
    return conform(told, REJECTS)


def not_integer(column: str, dtype: type[pl.Int32] | type[pl.Int64] = pl.Int32) -> Check:
    """The rule that a field holds a whole number that fits the type."""
    return Check(column, pl.col(column).cast(dtype, strict=False).is_null(), "not a whole number")


@dataclass(frozen=True, slots=True)
class _Quoted:
    """``records`` in quotes, all ``lines`` they cover together with the ``bad`` ones."""

    records: list[tuple[int | str, ...]]
    lines: list[int]
    bad: list[int]


def _among(numbers: list[int]) -> pl.Expr:
    return pl.col("line").is_in(pl.Series(numbers, dtype=pl.UInt32).implode())


def _quoted_records(lines: pl.DataFrame, table: TextTable) -> _Quoted:
    """Parse the records that begin on a line with a quote; a loop over those lines alone."""
    numbers, texts = lines["line"].to_list(), lines["text"].to_list()
    starts = lines["text"].str.contains('"', literal=True).arg_true().to_list()
    found = _Quoted([], [], [])
    after = 0
    for start in starts:
        if start < after:
            continue  # inside the record before
        window = (text + "\n" for text in texts[start : start + MAX_RECORD_LINES])
        reader = csv.reader(window, delimiter=table.separator, strict=True)
        try:
            fields = next(reader)
        except csv.Error:
            fields = []
        if len(fields) == len(table.columns):
            after = start + reader.line_num
            found.records.append((numbers[start], *fields))
        else:  # only this line is lost: what follows may be a record of its own
            after = start + 1
            found.bad.append(numbers[start])
        found.lines.extend(numbers[start:after])
    return found


def _as_utf8(path: Path, table: TextTable, scratch: Path) -> Path:
    """The file itself, or a copy in UTF-8 when it is not."""
    if _is_utf8(path):
        return path
    scratch.mkdir(parents=True, exist_ok=True)
    copy = scratch / f"utf8-{table.file}"
    encoding, errors = (table.encoding, "strict") if table.encoding else ("utf-8", "replace")
    with (
        path.open(encoding=encoding, errors=errors, newline="") as source,
        copy.open("w", encoding="utf-8", newline="") as target,
    ):
        while text := source.read(_CHUNK):
            target.write(text)
    return copy


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
