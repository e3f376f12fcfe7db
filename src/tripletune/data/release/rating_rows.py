"""What the readers of ratings have in common: how a file is written, and the sifting of typed rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from tripletune.config import IngestConfig
from tripletune.data.release.rules import first_fault, rating_rules
from tripletune.data.release.tables import Sifted, TextTable, field_rejects
from tripletune.schemas.ingest import RATINGS, REJECTS

PARSED = pl.Schema([*RATINGS.items(), ("line", pl.UInt32())])
"""A rating and its line (in a Parquet file: its row), from 1."""


@dataclass(frozen=True, slots=True)
class RatingsFormat:
    """How ratings are written.

    Args:
        table: of text files; ``table.file`` is the name in the rejects.
        columns: what the columns of RATINGS are called in the files.
        settings: the domain of a rating and of its time.
        shown: what to call the file in messages.
    """

    table: TextTable
    columns: Mapping[str, str]
    settings: IngestConfig
    shown: str


def sift_rows(raw: pl.DataFrame, numbers: Mapping[str, pl.Expr], form: RatingsFormat) -> Sifted:
    """Keep the good rows, schema PARSED.

    Args:
        raw: ``line`` and the columns of RATINGS as they stand in the file.
        numbers: how each becomes a number, null where it is none.
        form: the rules, and the names for the rejects.
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
