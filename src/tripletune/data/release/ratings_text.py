"""Read ratings from text, block by block: a clean block at full speed, a damaged one line by line.

Each block goes through polars' typed CSV reader first. Where that reader fails or a row breaks a rule, the block
is halved until the fault lies in a small block, which is read exactly (``tables.py``), so that every line is either
kept or rejected by number. Both paths give the same rows for the same text (tested). A quoted record may run over
several lines, so a block with quotes is not halved, and a record open at its end is read with the next block.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.data.release.rating_rows import RatingsFormat, sift_rows
from tripletune.data.release.rules import Rule, first_fault, number, rating_rules
from tripletune.data.release.tables import Sifted, TextTable, find_columns, parse_records
from tripletune.errors import InputError
from tripletune.schemas.ingest import RATINGS, REJECTS

_BLOCK = 1 << 24
_SMALL = 1 << 20
"""Blocks of at most this many bytes are read exactly, not halved again."""
_LONGEST_LINE = 1 << 20


def text_parts(path: Path, form: RatingsFormat) -> Iterator[Sifted]:
    """Read the ratings of a text file, plain or ``.gz``, in pieces, in the order of the file.

    Raises:
        InputError: the file is empty or cannot be read to its end, lacks a column, or has a line above 1 MiB.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            stream = BufferedReader(file, _BLOCK)
            line, table = _below_header(stream, form)
            block = _Block(table, form, rating_rules(form.settings))
            rest = b""
            while chunk := stream.read(_BLOCK):
                data = rest + chunk
                cut = data.rfind(b"\n") + 1
                used = yield from block.parse(data[:cut], line, more=True)
                line += data.count(b"\n", 0, used)
                rest = data[used:]
                if len(data) - cut > _LONGEST_LINE:
                    raise InputError(_too_long(form, line + rest.count(b"\n")))
            yield from block.parse(rest, line, more=False)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{form.shown} cannot be unpacked ({error}); fetch it again") from None


def _below_header(stream: BufferedReader[Any], form: RatingsFormat) -> tuple[int, TextTable]:
    """Number of the first line below the header, and the table with the columns of RATINGS under our names."""
    table = form.table
    if stream.peek(3).startswith(codecs.BOM_UTF8):
        stream.read(3)
    if not stream.peek(1):
        raise InputError(f"{form.shown} is empty; expected {table.describe()}")
    if not table.header:
        ours = {in_file: name for name, in_file in form.columns.items()}
        return 1, replace(table, columns=tuple(ours[in_file] for in_file in table.columns))
    header = stream.readline(_LONGEST_LINE)
    if len(header) == _LONGEST_LINE:
        raise InputError(_too_long(form, 1))
    if not header.strip() and not stream.read(_LONGEST_LINE).strip():
        raise InputError(f"{form.shown} is empty; expected {table.describe()}")
    return 2, find_columns(form.shown, header, table, form.columns)


def _too_long(form: RatingsFormat, line: int) -> str:
    return (
        f"{form.shown} line {line} is longer than {_LONGEST_LINE >> 20} MiB; give a table with a line for each rating"
    )


@dataclass(frozen=True, slots=True)
class _Block:
    """Reader of one file's blocks. ``table`` has the columns of RATINGS under our names."""

    table: TextTable
    form: RatingsFormat
    rules: Sequence[Rule]

    def parse(self, data: bytes, line: int, *, more: bool) -> Generator[Sifted, None, int]:
        """Parse whole lines, of which the first has the number ``line``.

        Returns:
            Number of bytes used; the rest belongs to a record that may end in later lines (``more``).
        """
        if not data:
            return 0
        rows = self._read_clean(data, line)
        quotes = self.table.quoted and b'"' in data
        cut = data.find(b"\n", len(data) // 2) + 1
        if rows is not None:
            yield Sifted(rows, pl.DataFrame(schema=REJECTS))
        elif quotes or len(data) <= _SMALL or cut in (0, len(data)):
            sifted, open_line = self._read_exactly(data, line, more)
            yield sifted
            if open_line is not None:
                return _offset(data, open_line - line)
        else:
            yield from self.parse(data[:cut], line, more=True)
            yield from self.parse(data[cut:], line + data.count(b"\n", 0, cut), more=more)
        return len(data)

    def _read_clean(self, data: bytes, line: int) -> pl.DataFrame | None:
        """Rows of a block in which every line is a good row; None for any other block."""
        lines = data.count(b"\n") + (not data.endswith(b"\n"))
        separator = self.table.separator
        quotes = self.table.quoted and b'"' in data
        if separator == "::":  # the typed reader supports one-byte separators only
            if b"\t" in data:
                return None
            separator, data = "\t", data.replace(b"::", b"\t")
        fields = len(self.table.columns)
        try:
            # the reader pads short lines; it fails at long ones, but not when it reads a subset of the columns
            if not (_simply_quoted(data, separator, fields) if quotes else _full(data, separator, fields, lines)):
                return None
            typed = pl.read_csv(
                data,
                has_header=False,
                schema={name: RATINGS.get(name, pl.String()) for name in self.table.columns},
                separator=separator,
                quote_char='"' if quotes else None,
            )
        except pl.exceptions.PolarsError:
            return None
        # fewer or more rows than lines: blank lines
        if typed.height != lines or typed.select(first_fault(self.rules).is_not_null().any()).item():
            return None
        return typed.select(*RATINGS, line=pl.int_range(line, line + lines, dtype=pl.UInt32))

    def _read_exactly(self, data: bytes, line: int, more: bool) -> tuple[Sifted, int | None]:
        """Rows of a block, parsed line by line, and the line where an open record begins."""
        records = parse_records(data, self.table, line, more=more)
        sifted = sift_rows(records.rows, {name: number(name, dtype) for name, dtype in RATINGS.items()}, self.form)
        rejects = pl.concat([records.rejects, sifted.rejects]).sort("line")
        return Sifted(sifted.kept, rejects), records.open_line


def _full(data: bytes, separator: str, fields: int, lines: int) -> bool:
    """Whether unquoted lines have the expected number of separators in total."""
    return data.count(separator.encode()) == lines * (fields - 1)


def _simply_quoted(data: bytes, separator: str, fields: int) -> bool:
    """Whether each line has all its fields, quoted only as a whole, which is unambiguous for every reader."""
    between = re.escape(separator)
    field = f'(?:[^"{between}]*|"[^"]*")'
    pattern = f"^{field}(?:{between}{field}){{{fields - 1}}}$"
    return bool(pl.read_lines(data, name="text")["text"].str.contains(pattern).all())


def _offset(data: bytes, number: int) -> int:
    """Byte offset of a line, numbered from 0, in data that ends with a line break."""
    place = len(data)
    for _ in range(data.count(b"\n") - number + 1):
        place = data.rfind(b"\n", 0, place)
    return place + 1
