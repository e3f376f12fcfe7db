"""Rows of the split for the audit: those of some users at a time, from the files that hold them; and digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from tripletune.errors import InputError
from tripletune.schemas.base import conform
from tripletune.schemas.split import SPLIT
from tripletune.store.parquet import scan
from tripletune.store.shards import split_files
from tripletune.threads import map_in_threads

READ = pl.Schema({name: SPLIT[name] for name in ("user_id", "movie_id", "rating", "position", "label", "unseen")})
"""Columns of the split that the rules use."""
FILES_AT_ONCE = 16
"""Files of the split whose users are compared with the fits' training rows at a time, which are read again for every
group: some 4 to 8 million likes with the 64 files of the largest release."""
AT_ONCE = 2
"""Files read at the same time; more gain nothing, as polars has its own threads."""


def digest(*columns: str) -> pl.Expr:
    """64-bit digest of each row, by value: lists, structs, null and empty are distinguished.

    It uses polars' hash, which is the same in every process of one version of polars.
    """
    return pl.struct(columns).hash(0)


def _viewers(path: Path) -> pl.DataFrame:
    rows = scan(path).select(pl.col(name).cast(dtype) for name, dtype in READ.items())
    # sums, unlike exclusive or, count repeated rows; they wrap at 64 bits
    return rows.select("user_id", row=digest(*READ)).group_by("user_id").agg(pl.col("row").sum(), pl.len()).collect()


class SplitRows:
    """Rows of the split for some users at a time, with an index of the files that hold a user's rows.

    Raises:
        InputError: a file has other columns than ``schemas.SPLIT``.
    """

    def __init__(self, split: Path) -> None:
        self._files = list(split_files(split).values())
        for path in self._files:
            missing = set(SPLIT) - set(scan(path).collect_schema())
            if missing:
                raise InputError(f"{path}: no column {', '.join(sorted(missing))}; run split again")
        parts = map_in_threads(_viewers, self._files, most=AT_ONCE)
        numbered = [part.with_columns(file=pl.lit(number, pl.Int32)) for number, part in enumerate(parts)]
        self.viewers = pl.concat(numbered).sort("user_id", "file")
        """``user_id, file, row, len``: sum of the digests and number of a user's rows in a file."""

    def digests(self) -> pl.DataFrame:
        """``user_id, viewer``: digest of all rows (``READ``) of every user, independent of their order and files."""
        sums = self.viewers.group_by("user_id").agg(pl.col("row", "len").sum())
        return sums.select("user_id", viewer=digest("row", "len"))

    def users_by_files(self) -> Iterator[pl.DataFrame]:
        """Every user once, with the first file that holds rows of the user, in groups of ``FILES_AT_ONCE`` files:
        ``user_id, file``."""
        first = self.viewers.select("user_id", "file").unique("user_id", keep="first", maintain_order=True)
        for number in range(0, len(self._files), FILES_AT_ONCE):
            yield first.filter(pl.col("file").is_between(number, number + FILES_AT_ONCE - 1))

    def of(self, users: pl.Series) -> pl.DataFrame:
        """All rows of these users, read from only the files that hold them; ``READ``."""
        wanted = users.unique().to_frame("user_id")
        numbers = self.viewers.join(wanted, on="user_id", how="semi")["file"].unique().sort().to_list()
        if not numbers:
            return pl.DataFrame(schema=READ)
        rows = scan([self._files[number] for number in numbers]).select(list(READ))
        # unlike a join, this lets the reader skip the other columns of other users' rows
        return conform(rows.filter(pl.col("user_id").is_in(wanted["user_id"].implode())).collect(), READ)
