"""Read ratings from Parquet, from any column types that convert to numbers or times unambiguously."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as kinds

from tripletune.data.release.rating_rows import RatingsFormat, sift_rows
from tripletune.data.release.rules import number
from tripletune.data.release.tables import Sifted
from tripletune.errors import InputError
from tripletune.schemas.ingest import RATINGS

_BATCH = 1 << 20


def parquet_parts(path: Path, form: RatingsFormat) -> Iterator[Sifted]:
    """Read the ratings of a Parquet file in batches, in the order of the file; rows are numbered from 1.

    Raises:
        InputError: the file cannot be read to its end, lacks a column or has it twice, or a column's type is
            neither a number nor text nor (for the time) a date or timestamp.
    """
    line = 1
    try:
        file = pq.ParquetFile(path)
        _check(file.schema_arrow, form)
        for batch in file.iter_batches(_BATCH, columns=list(form.columns.values())):
            columns = {name: _plain(batch.column(in_file)) for name, in_file in form.columns.items()}
            frame = pl.DataFrame(columns).with_columns(line=pl.int_range(line, line + batch.num_rows, dtype=pl.UInt32))
            yield sift_rows(frame, {name: _as_number(frame, name) for name in RATINGS}, form)
            line += batch.num_rows
        if line - 1 != file.metadata.num_rows:
            raise OSError(f"{line - 1} rows found of {file.metadata.num_rows}")
    except (OSError, UnicodeDecodeError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{form.shown} cannot be read as Parquet ({reason}); write or fetch it again") from None


def _check(schema: pa.Schema, form: RatingsFormat) -> None:
    for name, in_file in form.columns.items():
        if schema.names.count(in_file) != 1:
            fault = f"has {in_file!r} twice" if in_file in schema.names else f"has no column {in_file!r}"
            raise InputError(
                f"{form.shown} has the columns {', '.join(schema.names)} and {fault}; "
                "name its columns in [source.feed.columns]"
            )
        kind = schema.field(in_file).type
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        texts = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
        numbers = kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal128(kind) or kinds.is_null(kind)
        moments = name == "timestamp" and (kinds.is_timestamp(kind) or kinds.is_date(kind))
        if not (texts or numbers or moments):
            expected = "numbers, or days or moments in time" if name == "timestamp" else "numbers"
            raise InputError(f"{form.shown}: column {in_file!r} holds {kind}; expected {expected}: write it as such")


def _plain(column: pa.Array) -> pl.Series:
    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kinds.is_null(column.type):
        column = column.cast(pa.string())
    series = pl.from_arrow(column)
    assert isinstance(series, pl.Series)
    return series


def _as_number(frame: pl.DataFrame, name: str) -> pl.Expr:
    dtype, wanted = frame.schema[name], RATINGS[name]
    if dtype == pl.String:
        return number(name, wanted)
    if dtype.is_temporal():
        return pl.col(name).dt.epoch("s")
    if wanted.is_integer() and not dtype.is_integer():  # 1.5 is no id
        value = pl.col(name).cast(pl.Float64, strict=False)
        return pl.when(value.round() == value).then(value).cast(wanted, strict=False)
    return pl.col(name).cast(wanted, strict=False)
