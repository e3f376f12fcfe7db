"""Schemas: column names and dtypes. Files are read through their schema, so a wrong file fails there, by name."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl


def columns(columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.Schema:
    """A schema of columns, each described in the docstring that follows it."""
    return pl.Schema(columns)


def conform(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    """Select and cast the columns of ``schema``, in its order.

    Raises:
        polars.exceptions.ColumnNotFoundError, InvalidOperationError: a column is missing or a value does not fit.
    """
    return frame.select(pl.col(name).cast(dtype, strict=True) for name, dtype in schema.items())
