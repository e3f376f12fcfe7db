"""Merge the ratings of all files: reject unknown films, keep the newest of repeated ratings."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from tripletune.data.release.rating_rows import PARSED
from tripletune.data.release.ratings import Parsed
from tripletune.data.release.rules import DUPLICATE, UNKNOWN_MOVIE, Rule
from tripletune.data.release.tables import Sifted, field_rejects
from tripletune.schemas.ingest import RATINGS, REJECTS

_MERGED = pl.Schema([*PARSED.items(), ("file", pl.UInt32())])
_PIECE = 1 << 21
_PAIR = pl.col("user_id").cast(pl.Int64) * (1 << 32) + pl.col("movie_id")


def merge_ratings(files: Sequence[Parsed], movie_ids: pl.Series) -> Sifted:
    """Merge parsed files into schema RATINGS, with the line of each in its file as ``row``, sorted by user and movie.

    Of several ratings of one film by one user the newest is kept, and of equally new ones the highest, independent of
    the order of rows and files.

    Args:
        files: their parsed rows and rejects.
        movie_ids: the films of the release.
    """
    rows = [pl.DataFrame(schema=_MERGED)]
    rows += [parsed.rows.with_columns(file=pl.lit(number, pl.UInt32)) for number, parsed in enumerate(files)]
    merged = pl.concat(rows, rechunk=False)
    orphans = older = merged.clear()
    known = merged["movie_id"].is_in(movie_ids.implode())
    if not known.all():  # a filter copies, and most runs have nothing to reject
        orphans, merged = merged.filter(~known), merged.filter(known)
    if not _in_order(merged):
        merged = merged.sort(_PAIR)
        older = _older(merged)
    if not older.is_empty():
        merged = merged.with_row_index("row").filter(~pl.col("row").is_in(older["row"].implode()))
    rejects = [parsed.rejects for parsed in files]
    for refused, reason in ((orphans, UNKNOWN_MOVIE), (older, DUPLICATE)):
        rule = Rule("movie_id", pl.lit(True), reason)
        for number in refused["file"].unique().sort():
            of_file = refused.filter(pl.col("file") == number)
            rejects.append(field_rejects(of_file, files[number].file, rule, "movie_id", files[number].movie_column))
    rejects = [pl.DataFrame(schema=REJECTS), *rejects]
    return Sifted(merged.select(*RATINGS, row="line"), pl.concat(rejects).sort("file", "line"))


def _in_order(rows: pl.DataFrame) -> bool:
    """Whether rows strictly ascend by user and movie; a sorted release then needs one pass and no sort."""
    user, movie = pl.col("user_id").diff(), pl.col("movie_id").diff()
    falls = (user < 0) | ((user == 0) & (movie <= 0))
    # piece by piece, overlapping by one row: differences of the whole table would double the memory
    pieces = (rows.slice(start, _PIECE + 1) for start in range(0, rows.height, _PIECE))
    return not any(piece.select(falls.any()).item() for piece in pieces)


def _older(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that a newer rating replaces, with their number in ``row``; the input is sorted by user and movie."""
    same_as_before = (pl.col("user_id").diff() == 0) & (pl.col("movie_id").diff() == 0)
    again = rows.select(again=same_as_before.fill_null(False))["again"]
    repeated = rows.with_row_index("row").filter(again | again.shift(-1, fill_value=False))
    ranked = repeated.sort("user_id", "movie_id", "timestamp", "rating", "file", "line")
    return ranked.filter(~pl.struct("user_id", "movie_id").is_last_distinct())
