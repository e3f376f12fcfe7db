"""The ratings of all files as one table: films that nobody knows refused, of repeated ratings the newest kept."""

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
    """Ratings, schema RATINGS, sorted by user and movie.

    Of several ratings of one film by one user the newest counts, of the newest the highest, whatever the order of the
    rows and the files.

    Args:
        files: what stands in them.
        movie_ids: the films of the release.
    """
    rows = [pl.DataFrame(schema=_MERGED)]
    rows += [parsed.rows.with_columns(file=pl.lit(number, pl.UInt32)) for number, parsed in enumerate(files)]
    merged = pl.concat(rows, rechunk=False)
    orphans = older = merged.clear()
    known = merged["movie_id"].is_in(movie_ids.implode())
    if not known.all():  # a filter copies, and most nights there is nothing to refuse
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
    return Sifted(merged.select(*RATINGS), pl.concat([pl.DataFrame(schema=REJECTS), *rejects]).sort("file", "line"))


def _in_order(rows: pl.DataFrame) -> bool:
    """Whether every row comes after the one before, by user and movie; a pass over a sorted release is enough then."""
    user, movie = pl.col("user_id").diff(), pl.col("movie_id").diff()
    falls = (user < 0) | ((user == 0) & (movie <= 0))
    # piece by piece, each with the last row of the one before: differences of everything would double the memory
    pieces = (rows.slice(start, _PIECE + 1) for start in range(0, rows.height, _PIECE))
    return not any(piece.select(falls.any()).item() for piece in pieces)


def _older(rows: pl.DataFrame) -> pl.DataFrame:
    """Of rows sorted by user and movie those that a newer one replaces, with their number in ``row``."""
    same_as_before = (pl.col("user_id").diff() == 0) & (pl.col("movie_id").diff() == 0)
    again = rows.select(again=same_as_before.fill_null(False))["again"]
    repeated = rows.with_row_index("row").filter(again | again.shift(-1, fill_value=False))
    ranked = repeated.sort("user_id", "movie_id", "timestamp", "rating", "file", "line")
    return ranked.filter(~pl.struct("user_id", "movie_id").is_last_distinct())
