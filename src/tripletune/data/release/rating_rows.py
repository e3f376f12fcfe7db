"""Shared by the text and Parquet readers of ratings: the file's format, and the checks of typed rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from tripletune.config import IngestConfig
from tripletune.data.release.rules import first_fault, rating_rules
from tripletune.data.release.tables import Sifted, TextTable, field_rejects
from tripletune.schemas.ingest import RATINGS, REJECTS

PARSED = pl.Schema([*RATINGS.items(), ("line", pl.UInt32())])
"""A rating and its line number (in a Parquet file: row number), from 1."""


@dataclass(frozen=True, slots=True)
class RatingsFormat:
    """Format of a ratings file.

    Args:
        table: format of text files; ``table.file`` is the name in the rejects.
        columns: names of the columns of RATINGS in the file.
        settings: valid range of ratings and times.
        shown: name of the file in messages.
    """

    table: TextTable
    columns: Mapping[str, str]
    settings: IngestConfig
    shown: str


def sift_rows(raw: pl.DataFrame, numbers: Mapping[str, pl.Expr], form: RatingsFormat) -> Sifted:
    """Keep the good rows, schema PARSED.

    Args:
        raw: ``line`` and the columns of RATINGS as they stand in the file.
        numbers: for each column the expression that parses it; null where the value is no number.
        form: settings of the rules, and the names for the rejects.
    """
    rules = rating_rules(form.settings)
    typed = raw.select("line", **numbers).select("line", *RATINGS, _fault=first_fault(rules))
    rejects = [pl.DataFrame(schema=REJECTS)]
    for index, rule in enumerate(rules):
        failed = raw.filter(typed["_fault"] == index)
        if not failed.is_empty():
            rejects.append(field_rejects(failed, form.table.file, rule, rule.column, form.columns[rule.column]))
    good = typed.filter(pl.col("_fault").is_null()).select(*PARSED)
    return Sifted(good, pl.concat(rejects).sort("line"))
