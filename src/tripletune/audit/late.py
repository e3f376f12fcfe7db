"""No row from ``ingest.as_of`` on in any table that has times (docs/splits.md, rule 6)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl

from tripletune.audit.leaks import MAX_PER_KIND, Leak
from tripletune.store.read import scan_parquet

RULE = 6


def late_leaks(folders: Mapping[str, Path], as_of: date | None, *, limit: int | None = MAX_PER_KIND) -> list[Leak]:
    """Rows with a ``timestamp`` on or after a day, in every Parquet file of some stages' folders.

    Args:
        folders: by stage; finished or at work.
        as_of: the day (UTC); None: every row is early enough.
        limit: leaks of one file; None: all.
    """
    if as_of is None:
        return []
    first = int(datetime(as_of.year, as_of.month, as_of.day, tzinfo=UTC).timestamp())
    found: list[Leak] = []
    for stage, folder in folders.items():
        for path in sorted(folder.rglob("*.parquet")):
            table = scan_parquet(path)
            if "timestamp" not in table.collect_schema():
                continue
            late = table.with_row_index("row").filter(pl.col("timestamp") >= first).select("row", "timestamp")
            for row, time in late.head(limit).collect().iter_rows() if limit else late.collect().iter_rows():
                subject = f"{stage}/{path.relative_to(folder)} row {row}"
                day = datetime.fromtimestamp(time, UTC).date()
                found.append(Leak(RULE, "later than ingest.as_of", subject, f"of {day}, and the run is as of {as_of}"))
    return found
