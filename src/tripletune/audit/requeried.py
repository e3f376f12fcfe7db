"""Rule 5, a query's own future: lists that the retrieve stage computed again must be those that it wrote.

The second time, the user's rows from the cutoff on had other times, or other films and ratings (``REQUERIED``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import polars as pl

from tripletune.audit.rules import Finding
from tripletune.errors import InputError
from tripletune.schemas.generate import EXAMPLE_ID
from tripletune.schemas.hints import RETRIEVED_HINTS
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import REQUERIED, as_numbers
from tripletune.store.parquet import parquet_files, read_rows, scan

KINDS = {
    "time": "list changes with the time of the answer alone",
    "ratings": "list changes with the ratings from the cutoff on",
}
"""By ``REQUERIED.change``."""
_COLUMNS = {"candidates": pl.col("candidates"), **{hint.name: as_numbers(hint) for hint in RETRIEVED_HINTS}}
_JOINED = ("fused", *_COLUMNS)
"""Lists that other lists go into."""


def requeried_findings(retrieve: Path, reads_time: Collection[str]) -> Iterator[Finding]:
    """Lists that changed with their user's future.

    Args:
        retrieve: folder of that stage.
        reads_time: retrievers that say that they take the time of the request (``store.request_time``): their own
            lists, and those that they go into, may change with it.

    Raises:
        InputError: the lists were not computed again.
    """
    path = retrieve / "requeried.parquet"
    if not path.is_file():
        raise InputError(f"{path} is missing; run retrieve again")
    requeried = read_rows(path, REQUERIED)
    lists = [*QUERY_KEY, "retriever"]
    both = requeried.join(_written(retrieve, requeried), on=lists, how="left", maintain_order="left")
    moved = both.filter(pl.col("top").ne_missing(pl.col("written")))
    mine = pl.col("user_id").is_in(requeried["user_id"].unique().implode())
    ranked = scan(retrieve / "rankings.parquet").filter(mine).select(QUERY_KEY).collect()
    # all queries of a user, since its others are part of the id
    named = pl.concat([ranked, requeried.select(QUERY_KEY)]).unique().with_columns(EXAMPLE_ID)
    for change, kind in KINDS.items():
        found = moved.filter(pl.col("change") == change)
        if change == "time" and reads_time:
            found = found.filter(~pl.col("retriever").str.split("-").list.first().is_in([*reads_time, *_JOINED]))
        by_query = found.group_by(QUERY_KEY, maintain_order=True).agg(detail=pl.col("retriever").str.join(", "))
        by_query = by_query.join(named, on=QUERY_KEY, maintain_order="left")
        yield Finding(5, kind, by_query.select("example_id", "detail"))
    is_ranked = scan(retrieve / "rankings.parquet").select(pl.len()).collect().item() > 0
    absent = sorted(set(KINDS) - set(requeried["change"].cast(pl.String))) if is_ranked else []
    missing = pl.DataFrame({"example_id": absent}, schema={"example_id": pl.String})
    yield Finding(0, "no list was computed again", missing.with_columns(detail=pl.lit(path.name)))


def _written(retrieve: Path, requeried: pl.DataFrame) -> pl.DataFrame:
    """The same lists as the stage wrote them: ``QUERY_KEY, retriever, written``."""
    asked = requeried.lazy().select(QUERY_KEY).unique()
    rankings = scan(retrieve / "rankings.parquet").join(asked, on=QUERY_KEY, how="semi")
    parts = [rankings.select(*QUERY_KEY, "retriever", written="top")]
    named = [name for name in _COLUMNS if name in requeried["retriever"]]
    if named:
        retrieved = scan(parquet_files(retrieve, "retrieved")).join(asked, on=QUERY_KEY, how="semi")
        parts += [retrieved.select(*QUERY_KEY, retriever=pl.lit(name), written=_COLUMNS[name]) for name in named]
    return pl.concat(parts).collect()
