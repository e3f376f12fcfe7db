"""Read delimited text exactly: every row is returned as it stands in the file or rejected with its line number.

CSV readers repair, skip or stop at damaged lines. Here a table is read line by line (vectorised), lines with quotes go
through the standard library's strict CSV parser, and only the lines that are no records are lost.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from tripletune.data.release.rules import NOT_UTF8, Rule, first_fault
from tripletune.errors import InputError
from tripletune.schemas.base import conform
from tripletune.schemas.ingest import REJECTS

MAX_RECORD_LINES = 100
"""A quoted field over more lines than this counts as an unclosed quote."""
CLIP = 200
"""Characters kept of a rejected value."""
_OPEN = "unexpected end of data"
"""The CSV parser's error message for a quote that is open at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """Format of one table in a text file.

    Args:
        file: name of the file.
        columns: names of its fields, in order.
        separator: between fields.
        header: whether the first line holds the names; columns are then found by name, in any order.
        quoted: whether fields may be in double quotes, and then contain separators and line breaks.
        encoding: fallback for files that are not UTF-8. Empty: lines that are not UTF-8 are rejected.
        hint: further advice in the error message about an unexpected header.
    """

    file: str
    columns: tuple[str, ...]
    separator: str = ","
    header: bool = True
    quoted: bool = False
    encoding: str = ""
    hint: str = ""

    def describe(self) -> str:
        """The expected line, for error messages."""
        kind = "the header" if self.header else "lines of"
        return f"{kind} {self.separator.join(self.columns)!r}"


@dataclass(frozen=True, slots=True)
class Records:
    """``rows``: ``line`` and the fields as strings; ``rejects``: schema REJECTS, for the lines that are no records.

    ``open_line``: where a quoted record begins that may end in later lines; the other two stop before it.
    """

    rows: pl.DataFrame
    rejects: pl.DataFrame
    open_line: int | None = None


@dataclass(frozen=True, slots=True)
class Sifted:
    """``kept`` rows, and the rejected ones as schema REJECTS."""

    kept: pl.DataFrame
    rejects: pl.DataFrame


def read_table(path: Path, table: TextTable, rules: Sequence[Rule]) -> Sifted:
    """Read a table of strings that fits in memory, and keep the rows that pass every rule.

    Raises:
        InputError: the file is empty or its header is not the expected one.
    """
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise InputError(f"{path} is empty; expected {table.describe()}")
    start = 0
    if table.header:
        start = data.find(b"\n") + 1 or len(data)
        table = find_columns(str(path), data[:start], table, {name: name for name in table.columns})
    records = parse_records(data[start:], table, first_line=2 if table.header else 1)
    return sift(records, table, rules)


def find_columns(shown: str, header: bytes, table: TextTable, in_file: Mapping[str, str]) -> TextTable:
    """Order the table's columns as in a file's header line.

    Args:
        shown: name of the file in messages.
        header: its first line.
        table: the expected columns.
        in_file: for each column its name in the header. Further columns of the file are named ``_<place>``.

    Raises:
        InputError: a column is not in the header, or is there twice.
    """
    text = header.decode("utf-8", "replace").rstrip("\r\n")
    names = [name.strip().strip('"') for name in text.split(table.separator)]
    wrong = [name for name in in_file.values() if names.count(name) != 1]
    if wrong:
        fault = f"has {wrong[0]!r} twice" if wrong[0] in names else f"has no column {wrong[0]!r}"
        hint = f"; {table.hint}" if table.hint else ""
        raise InputError(f"{shown} line 1 reads {text[:CLIP]!r} and {fault}; expected {table.describe()}{hint}")
    ours = {name: column for column, name in in_file.items()}
    return replace(table, columns=tuple(ours.get(name, f"_{place}") for place, name in enumerate(names)))


def parse_records(data: bytes, table: TextTable, first_line: int, *, more: bool = False) -> Records:
    """Split lines into fields; blank lines are skipped.

    Args:
        data: whole lines, below the header.
        table: their format.
        first_line: number of the first of them in the file.
        more: whether later lines follow, in which a record that begins here may end.
    """
    lines, undecodable = _lines(data, table, first_line)
    quoted = _quoted_records(lines, table, more) if table.quoted else _Quoted([], [], [])
    if quoted.open_line:
        before = pl.col("line") < quoted.open_line
        lines, undecodable = lines.filter(before), undecodable.filter(before)
    plain = _split_fields(lines.filter(~_among(quoted.lines)), table)
    strings = dict.fromkeys(table.columns, pl.String)
    parsed = pl.DataFrame(quoted.records, schema={"line": pl.UInt32, **strings}, orient="row")
    rows = pl.concat([plain.filter("_whole").drop("_whole"), parsed]).sort("line")
    short = lines.join(plain.filter(~pl.col("_whole")), on="line", how="semi", maintain_order="left")
    bad = lines.filter(_among(quoted.bad))
    not_a_record = f"not {len(table.columns)} fields separated by {table.separator!r}"
    rejects = [_whole_lines(undecodable, table, NOT_UTF8), _whole_lines(pl.concat([short, bad]), table, not_a_record)]
    return Records(rows, pl.concat(rejects).sort("line"), quoted.open_line)


def sift(records: Records, table: TextTable, rules: Sequence[Rule]) -> Sifted:
    """Keep the rows of strings that pass every rule; a rejected row gets the reason of the first rule it fails."""
    rows = records.rows.with_columns(_fault=first_fault(rules))
    rejects = [records.rejects]
    for index, rule in enumerate(rules):
        failed = rows.filter(pl.col("_fault") == index)
        rejects.append(field_rejects(failed, table.file, rule, value=rule.column))
    return Sifted(rows.filter(pl.col("_fault").is_null()).drop("_fault"), pl.concat(rejects).sort("line"))


def field_rejects(rows: pl.DataFrame, file: str, rule: Rule, value: str, column: str = "") -> pl.DataFrame:
    """Rejects (schema REJECTS) for rows that fail a rule.

    Args:
        rows: with ``line`` and the rejected values.
        file: name of the file in the rejects.
        rule: the rule they fail.
        value: column of ``rows`` that holds the rejected values.
        column: name of that column in the file, when not as in the rule.
    """
    return _rejects(rows, file, pl.lit(column or rule.column), pl.col(value).cast(pl.String), rule.reason)


def _whole_lines(lines: pl.DataFrame, table: TextTable, reason: str) -> pl.DataFrame:
    return _rejects(lines, table.file, pl.lit(None, pl.String), pl.col("text"), reason)


def _rejects(rows: pl.DataFrame, file: str, column: pl.Expr, value: pl.Expr, reason: str) -> pl.DataFrame:
    rejected = rows.select(
        "line", file=pl.lit(file), column=column, value=value.str.slice(0, CLIP), reason=pl.lit(reason)
    )
    return conform(rejected, REJECTS)


def _lines(data: bytes, table: TextTable, first_line: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """``line`` and ``text`` of the lines that can be decoded, and of those that cannot."""
    undecodable: list[int] = []
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        if not table.encoding:
            undecodable = [number for number, line in enumerate(data.split(b"\n"), first_line) if not _is_utf8(line)]
        data = data.decode(table.encoding or "utf-8", "replace").encode()
    lines = pl.read_lines(data, name="text", row_index_name="line", row_index_offset=first_line)
    return lines.filter(~_among(undecodable)), lines.filter(_among(undecodable))


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _split_fields(lines: pl.DataFrame, table: TextTable) -> pl.DataFrame:
    """``line``, one String column per field, and ``_whole``: whether the line has exactly the expected fields."""
    number = len(table.columns)
    # one field more than expected: null exactly when the line is not too long
    fields = pl.col("text").str.split_exact(table.separator, number).struct
    return (
        lines.filter(pl.col("text") != "")
        .select("line", fields.rename_fields([*table.columns, "_more"]).struct.unnest())
        .select("line", *table.columns, _whole=pl.col("_more").is_null() & pl.col(table.columns[-1]).is_not_null())
    )


@dataclass(slots=True)
class _Quoted:
    """``records`` in quotes, all ``lines`` they cover together with the ``bad`` ones; see ``Records.open_line``."""

    records: list[tuple[int | str, ...]]
    lines: list[int]
    bad: list[int]
    open_line: int | None = None


def _among(numbers: list[int]) -> pl.Expr:
    return pl.col("line").is_in(pl.Series(numbers, dtype=pl.UInt32).implode())


def _quoted_records(lines: pl.DataFrame, table: TextTable, more: bool) -> _Quoted:
    """Parse the records that begin on a line with a quote; loops over those lines only."""
    found = _Quoted([], [], [])
    starts = lines["text"].str.contains('"', literal=True).arg_true().to_list()
    if not starts:
        return found
    numbers, texts = lines["line"].to_list(), lines["text"].to_list()
    after = 0
    for start in starts:
        if start < after:
            continue  # inside the previous record
        end = min(start + MAX_RECORD_LINES, len(texts))
        while numbers[end - 1] - numbers[start] > end - 1 - start:
            end -= 1  # a record does not span a line that could not be decoded
        window = (text + "\n" for text in texts[start:end])
        reader = csv.reader(window, delimiter=table.separator, strict=True)
        try:
            fields = next(reader)
        except csv.Error as error:
            fields = []
            if more and start + MAX_RECORD_LINES > end == len(texts) and str(error) == _OPEN:
                found.open_line = numbers[start]
                break
        if len(fields) == len(table.columns):
            after = start + reader.line_num
            found.records.append((numbers[start], *fields))
        else:  # only this line is lost: the next may begin a record
            after = start + 1
            found.bad.append(numbers[start])
        found.lines.extend(numbers[start:after])
    return found
