"""A MovieLens release into typed Parquet: good rows kept, bad rows counted and named in ``rejects.parquet``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tripletune.config import FeedColumns, IngestConfig
from tripletune.data.archive import unpack
from tripletune.data.catalogue import read_links, read_movies, read_tags, read_users
from tripletune.data.feed import load_parsed
from tripletune.data.layouts import KNOWN_FILES, Layout, find_layout
from tripletune.data.merge import merge_ratings
from tripletune.data.ratings import RatingsFormat, parse_ratings
from tripletune.data.rules import DUPLICATE
from tripletune.data.tables import Sifted
from tripletune.errors import InputError
from tripletune.paths import SCRATCH, Facts, write_atomically

_ROW_GROUP = 1 << 18


def ingest_release(release: Path, out: Path, settings: IngestConfig, feed: Sequence[Path] | None = None) -> Facts:
    """Read a release and write ``ratings movies tags links users rejects .parquet``.

    Args:
        release: a folder or a zip in one of the layouts of ``layouts.py``; also when it lies one folder down.
        out: the work folder.
        settings: domain of a rating and of its time, and the share of refused ratings at which to stop.
        feed: folders of ``feed.parse_feed_file`` that take the place of the release's ratings.

    Returns:
        ``rows_in = rows_kept + rows_rejected`` of the ratings, the same for each table under ``tables``, rejects by
        reason over all tables, and counts of viewers and movies.

    Raises:
        InputError: the release is missing, damaged or of no known layout, a header is not the expected one, a table
            has no usable rows, or more than ``max_reject_share`` of the ratings were refused.
    """
    scratch = out / SCRATCH
    layout, folder = _open(release, scratch, told_by="ratings" if feed is None else "movies")
    written = _Written(out)
    movies = read_movies(folder, layout)
    movie_ids = movies.kept["movie_id"]
    written.add("movies", movies)
    # each table is written before the next is read: the ratings need most of the memory
    viewers = _write_ratings(release, folder, layout, movie_ids, settings, feed, written)
    written.add("tags", read_tags(folder, layout, movie_ids))
    written.add("links", read_links(folder, layout, movie_ids))
    written.add("users", read_users(folder, layout))
    rejects = pl.concat(written.rejects).sort("file", "line")
    _write(rejects, out / "rejects.parquet")
    shutil.rmtree(scratch, ignore_errors=True)
    by_reason = rejects.group_by("reason").len().sort("reason").iter_rows()
    return {
        "layout": layout.name,
        **written.counts["ratings"],
        "rejected_by_reason": dict(by_reason),
        "tables": written.counts,
        "viewers": viewers,
        "movies": movie_ids.len(),
    }


@dataclass(slots=True)
class _Written:
    """The tables that are written: their counts by name, and their rejects."""

    out: Path
    counts: dict[str, Facts] = field(default_factory=dict)
    rejects: list[pl.DataFrame] = field(default_factory=list)

    def add(self, name: str, table: Sifted) -> None:
        """Write a table; only its rejects are held from then on."""
        _write(table.kept, self.out / f"{name}.parquet")
        self.counts[name] = _counts(table)
        self.rejects.append(table.rejects)


def _write_ratings(
    release: Path,
    folder: Path,
    layout: Layout,
    movie_ids: pl.Series,
    settings: IngestConfig,
    feed: Sequence[Path] | None,
    written: _Written,
) -> int:
    """Read, check and write the ratings of the release or of the feed; how many viewers there are."""
    if feed is None:
        ratings = _read_ratings(folder, layout, movie_ids, settings)
    else:
        ratings = merge_ratings([load_parsed(part) for part in feed], movie_ids)
    _refuse_bad_ratings(release, ratings, settings)
    written.add("ratings", ratings)
    return ratings.kept["user_id"].n_unique()


def _read_ratings(folder: Path, layout: Layout, movie_ids: pl.Series, settings: IngestConfig) -> Sifted:
    table, told = layout.tables["ratings"], FeedColumns().model_dump()
    parsed = parse_ratings(folder / table.file, RatingsFormat(table, told, settings))
    if parsed.rows.is_empty() and parsed.rejects.is_empty():
        raise InputError(f"{folder / table.file} has no ratings; expected rows below {table.describe()}")
    return merge_ratings([parsed], movie_ids)


def _open(release: Path, scratch: Path, told_by: str) -> tuple[Layout, Path]:
    if not release.exists():
        raise InputError(f"{release} does not exist; name a MovieLens release, a folder or a zip")
    if release.is_dir():
        return find_layout(release, release, told_by=told_by)
    if release.suffix.lower() != ".zip":
        raise InputError(f"{release} is neither a folder nor a .zip; name the folder of the release, or its zip")
    unpacked = scratch / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    return find_layout(unpack(release, KNOWN_FILES, unpacked), release, told_by=told_by)


def _refuse_bad_ratings(release: Path, ratings: Sifted, settings: IngestConfig) -> None:
    """Stop when too much is wrong; an older rating that a newer one replaces is no damage."""
    counts, bad = _counts(ratings), ratings.rejects.filter(pl.col("reason") != DUPLICATE)
    if bad.height <= settings.max_reject_share * counts["rows_in"] and counts["rows_kept"]:
        return
    if not counts["rows_in"]:
        raise InputError("source.feed.ratings: not one row in its files; give files with ratings")
    reasons = bad.group_by("reason").agg(pl.len().alias("rows"))
    worst = reasons.sort("rows", "reason", descending=[True, False]).row(0, named=True)
    example = bad.filter(pl.col("reason") == worst["reason"]).sort("file", "line").row(0, named=True)
    where = f"{example['file']} line {example['line']}" + (f", {example['column']}" if example["column"] else "")
    raise InputError(
        f"{release}: {bad.height} of {counts['rows_in']} ratings were refused, more than the share "
        f"ingest.max_reject_share = {settings.max_reject_share}; most often ({worst['rows']}): {worst['reason']}, "
        f"such as {example['value']!r} in {where}; repair the file or raise the share"
    )


def _counts(table: Sifted) -> Facts:
    kept, rejected = table.kept.height, table.rejects.height
    return {"rows_in": kept + rejected, "rows_kept": kept, "rows_rejected": rejected}


def _write(frame: pl.DataFrame, path: Path) -> None:
    write_atomically(path, lambda part: frame.write_parquet(part, compression="zstd", row_group_size=_ROW_GROUP))
