"""One file of ratings into numbers, block by block: a clean block at full speed, a damaged one line by line.

Each block goes through polars' typed CSV reader first. Where that reader finds anything unusual, or a row breaks a
rule, the block is halved until the trouble lies in a small one, and that one is read exactly (``tables.py``), so that
every line is either kept or refused by number. Both ways give the same numbers for the same text; a test holds them
together.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tripletune.config import IngestConfig
from tripletune.data.rules import Rule, first_fault, number, rating_rules
from tripletune.data.tables import Sifted, TextTable, field_rejects, find_columns, parse_records
from tripletune.errors import InputError
from tripletune.schemas import RATINGS, REJECTS

PARSED = pl.Schema([*RATINGS.items(), ("line", pl.UInt32())])
"""A rating and its line (in a Parquet file: its row), from 1."""
_BLOCK = 1 << 24
_SMALL = 1 << 20
"""Bytes of a block that is read exactly rather than halved again."""
_BATCH = 1 << 20
"""Rows of a Parquet file read at a time."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """The ratings of one file.

    Args:
        file: its name, as in the rejects.
        movie_column: what its column of films is called.
        rows: schema PARSED, in the order of the file, each by itself a good one.
        rejects: schema REJECTS.
    """

    file: str
    movie_column: str
    rows: pl.DataFrame
    rejects: pl.DataFrame


@dataclass(frozen=True, slots=True)
class RatingsFormat:
    """How ratings are written.

    Args:
        table: of text files; ``table.file`` is the name in the rejects.
        columns: what the columns of RATINGS are called in the files.
        settings: the domain of a rating and of its time.
    """

    table: TextTable
    columns: Mapping[str, str]
    settings: IngestConfig


def parse_ratings(path: Path, form: RatingsFormat) -> Parsed:
    """Read the ratings of one file: text, plain or ``.gz``, or Parquet.

    Raises:
        InputError: the file is empty or cannot be read to its end, or lacks a column.
    """
    parts = _parquet_parts(path, form) if path.suffix == ".parquet" else _text_parts(path, form)
    rows, rejects = [pl.DataFrame(schema=PARSED)], [pl.DataFrame(schema=REJECTS)]
    for part in parts:
        rows.append(part.kept)
        rejects.append(part.rejects)
    return Parsed(form.table.file, form.columns["movie_id"], pl.concat(rows, rechunk=False), pl.concat(rejects))


def _text_parts(path: Path, form: RatingsFormat) -> Iterator[Sifted]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            stream = BufferedReader(file, _BLOCK)
            line, table = _below_header(path, stream, form)
            block = _Block(table, form, rating_rules(form.settings))
            for data in _whole_lines(stream):
                yield from block.parse(data, line)
                line += data.count(b"\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} cannot be unpacked ({error}); fetch it again") from None


def _below_header(path: Path, stream: BufferedReader[Any], form: RatingsFormat) -> tuple[int, TextTable]:
    """Number of the first line below the header, and the table with our names for the columns we know."""
    table = form.table
    if not stream.peek(1):
        raise InputError(f"{path} is empty; expected {table.describe()}")
    if not table.header:
        ours = {told: name for name, told in form.columns.items()}
        return 1, replace(table, columns=tuple(ours[told] for told in table.columns))
    header = stream.readline()
    if not header.strip() and not stream.read().strip():
        raise InputError(f"{path} is empty; expected {table.describe()}")
    return 2, find_columns(path, header, table, form.columns)


def _whole_lines(stream: BufferedReader[Any]) -> Iterator[bytes]:
    """The rest of a stream in pieces of about ``_BLOCK`` bytes that end where a line ends."""
    rest = b""
    while chunk := stream.read(_BLOCK):
        cut = chunk.rfind(b"\n") + 1
        if cut:
            yield rest + chunk[:cut]
            rest = chunk[cut:]
        else:
            rest += chunk
    if rest:
        yield rest


@dataclass(frozen=True, slots=True)
class _Block:
    """Reads blocks of one file. ``table`` has our names for the columns we know."""

    table: TextTable
    form: RatingsFormat
    rules: Sequence[Rule]

    def parse(self, data: bytes, line: int) -> Iterator[Sifted]:
        """The rows of whole lines, of which the first has the number ``line``."""
        rows = self._read_clean(data, line)
        cut = data.find(b"\n", len(data) // 2) + 1
        if rows is not None:
            yield Sifted(rows, pl.DataFrame(schema=REJECTS))
        elif len(data) <= _SMALL or cut in (0, len(data)):
            yield self._read_exactly(data, line)
        else:
            yield from self.parse(data[:cut], line)
            yield from self.parse(data[cut:], line + data.count(b"\n", 0, cut))

    def _read_clean(self, data: bytes, line: int) -> pl.DataFrame | None:
        """The rows of a block in which every line is a good row, or None."""
        lines = data.count(b"\n") + (not data.endswith(b"\n"))
        separator = self.table.separator
        if separator == "::":  # the typed reader knows separators of one byte
            if b"\t" in data:
                return None
            separator, data = "\t", data.replace(b"::", b"\t")
        try:
            typed = pl.read_csv(
                data,
                has_header=False,
                schema={name: RATINGS.get(name, pl.String()) for name in self.table.columns},
                columns=[place for place, name in enumerate(self.table.columns) if name in RATINGS],
                separator=separator,
                quote_char='"' if self.table.quoted and b'"' in data else None,
            )
        except pl.exceptions.PolarsError:
            return None
        # fewer or more rows than lines: blank lines, or a quote that runs on
        if typed.height != lines or typed.select(first_fault(self.rules).is_not_null().any()).item():
            return None
        return typed.select(*RATINGS, line=pl.int_range(line, line + lines, dtype=pl.UInt32))

    def _read_exactly(self, data: bytes, line: int) -> Sifted:
        """The rows of a block line by line."""
        records = parse_records(data, self.table, line)
        sifted = _sift(records.rows, {name: number(name, dtype) for name, dtype in RATINGS.items()}, self.form)
        return Sifted(sifted.kept, pl.concat([records.rejects, sifted.rejects]).sort("line"))


def _parquet_parts(path: Path, form: RatingsFormat) -> Iterator[Sifted]:
    names = list(form.columns.values())
    line = 1
    try:
        file = pq.ParquetFile(path)
        missing = [name for name in names if name not in file.schema_arrow.names]
        if missing:
            raise InputError(
                f"{path} has the columns {', '.join(file.schema_arrow.names)}; expected {missing[0]!r} among them: "
                "name its columns in [source.feed.columns]"
            )
        for batch in file.iter_batches(_BATCH, columns=names):
            frame = pl.DataFrame(pa.Table.from_batches([batch])).rename({told: n for n, told in form.columns.items()})
            frame = frame.with_columns(line=pl.int_range(line, line + batch.num_rows, dtype=pl.UInt32))
            yield _sift(frame, {name: _as_number(frame, name) for name in RATINGS}, form)
            line += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read as Parquet ({reason}); write or fetch it again") from None


def _as_number(frame: pl.DataFrame, name: str) -> pl.Expr:
    dtype = frame.schema[name]
    if dtype == pl.String:
        return number(name, RATINGS[name])
    if dtype.is_temporal():
        return pl.col(name).dt.epoch("s")
    if dtype.is_float() and RATINGS[name].is_integer():  # 1.5 is no id
        whole = pl.col(name).round() == pl.col(name)
        return pl.when(whole).then(pl.col(name)).cast(RATINGS[name], strict=False)
    return pl.col(name).cast(RATINGS[name], strict=False)


def _sift(raw: pl.DataFrame, numbers: Mapping[str, pl.Expr], form: RatingsFormat) -> Sifted:
    """Keep the good rows of ``raw``, which has ``line`` and the columns of RATINGS as they stand in the file."""
    rules = rating_rules(form.settings)
    typed = raw.select("line", **numbers).select("line", *RATINGS, _fault=first_fault(rules))
    rejects = [pl.DataFrame(schema=REJECTS)]
    for index, rule in enumerate(rules):
        failed = raw.filter(typed["_fault"] == index)
        if not failed.is_empty():
            rejects.append(field_rejects(failed, form.table.file, rule, rule.column, form.columns[rule.column]))
    good = typed.filter(pl.col("_fault").is_null()).select(*PARSED)
    return Sifted(good, pl.concat(rejects).sort("line"))
