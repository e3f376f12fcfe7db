"""Convert a MovieLens release to typed Parquet; bad rows are counted and listed in ``rejects.parquet``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import polars as pl

from tripletune.config import FeedColumns, IngestConfig
from tripletune.data.feed.parse import FeedPart, load_parsed
from tripletune.data.release.archive import unpack
from tripletune.data.release.catalogue import read_links, read_movies, read_tags, read_users
from tripletune.data.release.layouts import KNOWN_FILES, Layout, find_layout
from tripletune.data.release.merge import merge_ratings
from tripletune.data.release.rating_rows import RatingsFormat
from tripletune.data.release.ratings import Parsed, parse_ratings
from tripletune.data.release.rules import DUPLICATE
from tripletune.data.release.tables import Sifted
from tripletune.errors import InputError
from tripletune.schemas.ingest import ORDER, RATINGS, midnight
from tripletune.store.parquet import ROW_GROUP, write_parquet
from tripletune.store.paths import SCRATCH, Facts

UNDATED = ("movies", "links", "users")
"""Tables without times: a run as of a day takes them as they are."""


def ingest_release(release: Path, out: Path, settings: IngestConfig, feed: Sequence[FeedPart] | None = None) -> Facts:
    """Read a release and write ``ratings movies tags links users rejects .parquet``, and ``order`` without a feed.

    Args:
        release: a folder or a zip in one of the layouts of ``layouts.py``, at its top or one folder down.
        out: the work folder.
        settings: valid range of ratings and times, and the share of rejected rows above which to stop.
        feed: parsed files that replace the release's ratings.

    Returns:
        ``rows_in = rows_kept + rows_rejected`` of the ratings, the same for each table under ``tables``, rejects by
        reason over all tables, and counts of users and movies.

    Raises:
        InputError: the release is missing, damaged or in no layout of ``layouts.py``, a header is not the expected one,
            a table has no usable rows, or more than ``max_reject_share`` of a table's rows were rejected.
    """
    unpacked = out / SCRATCH / "unpacked"
    try:
        layout, folder = _open(release, unpacked, told_by="ratings" if feed is None else "movies")
        written = _Written(release, out, settings)
        movies = read_movies(folder, layout)
        movie_ids = movies.kept["movie_id"]
        written.add("movies", movies)
        # each table is written before the next is read: the ratings need most of the memory
        parsed = _load_feed(feed) if feed else _read_ratings(folder, layout, settings)
        late = _Late(settings.as_of)
        ratings = merge_ratings(late.left_out(parsed), movie_ids)
        viewers = ratings.kept["user_id"].n_unique()
        written.add("ratings", ratings, RATINGS, source="" if feed is None else "source.feed.ratings")
        if feed is None:
            write_parquet(out / "order.parquet", ratings.kept.select(*ORDER), row_group_size=ROW_GROUP)
        del ratings
        written.add("tags", late.left_out_of("tags", read_tags(folder, layout, movie_ids, settings)))
        written.add("links", read_links(folder, layout, movie_ids))
        written.add("users", read_users(folder, layout))
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    rejects = pl.concat(written.rejects).sort("file", "line")
    write_parquet(out / "rejects.parquet", rejects, row_group_size=ROW_GROUP)
    by_reason = rejects.group_by("reason").len().sort("reason").iter_rows()
    return {
        "layout": layout.name,
        **written.counts["ratings"],
        "rejected_by_reason": dict(by_reason),
        "tables": written.counts,
        "viewers": viewers,
        "movies": movie_ids.len(),
        **late.facts(),
    }


@dataclass(slots=True)
class _Late:
    """Leaves out the rows from ``ingest.as_of`` on, before rows are compared with each other, and counts them."""

    as_of: date | None
    rows: dict[str, int] = field(default_factory=dict)

    def left_out(self, files: Sequence[Parsed]) -> list[Parsed]:
        """The ratings of all files without the late ones.

        Raises:
            InputError: none is left.
        """
        if self.as_of is None:
            return list(files)
        kept = [replace(one, rows=one.rows.filter(self._is_early(self.as_of))) for one in files]
        self.rows["ratings"] = sum(one.rows.height for one in files) - sum(one.rows.height for one in kept)
        if self.rows["ratings"] and not any(one.rows.height for one in kept):
            raise InputError(f"ingest.as_of = {self.as_of}: every rating is of that day or later; give a later day")
        return kept

    def left_out_of(self, name: str, table: Sifted) -> Sifted:
        """A table without its late rows."""
        if self.as_of is None:
            return table
        kept = table.kept.filter(self._is_early(self.as_of))
        self.rows[name] = table.kept.height - kept.height
        return Sifted(kept, table.rejects)

    @staticmethod
    def _is_early(as_of: date) -> pl.Expr:
        return pl.col("timestamp") < midnight(as_of)

    def facts(self) -> Facts:
        """The day, how many rows of it and later were left out, and what has no date; nothing where no day is set."""
        if self.as_of is None:
            return {}
        return {"as_of": self.as_of.isoformat(), "left_out_as_later": self.rows, "undated": list(UNDATED)}


@dataclass(slots=True)
class _Written:
    """Writer of the tables; collects their counts by name and their rejects."""

    release: Path
    out: Path
    settings: IngestConfig
    counts: dict[str, Facts] = field(default_factory=dict)
    rejects: list[pl.DataFrame] = field(default_factory=list)

    def add(self, name: str, table: Sifted, schema: pl.Schema | None = None, source: str = "") -> None:
        """Write a table, or its columns in ``schema``; only its rejects stay in memory.

        Raises:
            InputError: too many of its rows were rejected; ``source`` names their origin, if not the release.
        """
        _refuse_damage(source or str(self.release), name, table, self.settings)
        kept = table.kept.select(*schema) if schema else table.kept
        write_parquet(self.out / f"{name}.parquet", kept, row_group_size=ROW_GROUP)
        self.counts[name] = _counts(table)
        self.rejects.append(table.rejects)


def _load_feed(feed: Sequence[FeedPart]) -> list[Parsed]:
    files = [load_parsed(part) for part in feed]
    if all(one.rows.is_empty() and one.rejects.is_empty() for one in files):
        raise InputError("source.feed.ratings: not one row in its files; give files with ratings")
    return files


def _read_ratings(folder: Path, layout: Layout, settings: IngestConfig) -> list[Parsed]:
    table, in_file = layout.tables["ratings"], FeedColumns().model_dump()
    parsed = parse_ratings(folder / table.file, RatingsFormat(table, in_file, settings, str(folder / table.file)))
    if parsed.rows.is_empty() and parsed.rejects.is_empty():
        raise InputError(f"{folder / table.file} has no ratings; expected rows below {table.describe()}")
    return [parsed]


def _open(release: Path, unpacked: Path, told_by: str) -> tuple[Layout, Path]:
    if not release.exists():
        raise InputError(f"{release} does not exist; name a MovieLens release, a folder or a zip")
    if release.is_dir():
        return find_layout(release, release, told_by=told_by)
    if release.suffix.lower() != ".zip":
        raise InputError(f"{release} is neither a folder nor a .zip; name the folder of the release, or its zip")
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    return find_layout(unpack(release, KNOWN_FILES, unpacked), release, told_by=told_by)


def _refuse_damage(source: str, name: str, table: Sifted, settings: IngestConfig) -> None:
    """Raise InputError when too many rows are rejected; replaced duplicate ratings are not counted."""
    rows, bad = _counts(table)["rows_in"], table.rejects.filter(pl.col("reason") != DUPLICATE)
    allowed = settings.max_reject_share * rows
    if not bad.height or (bad.height <= allowed and not (name == "ratings" and table.kept.is_empty())):
        return
    reasons = bad.group_by("reason").agg(pl.len().alias("rows"))
    worst = reasons.sort("rows", "reason", descending=[True, False]).row(0, named=True)
    example = bad.filter(pl.col("reason") == worst["reason"]).sort("file", "line").row(0, named=True)
    where = f"{example['file']} line {example['line']}" + (f", {example['column']}" if example["column"] else "")
    limit, way_out = "and none is left", "repair the file"
    if bad.height > allowed:
        limit = f"more than the share ingest.max_reject_share = {settings.max_reject_share}"
        way_out += " or raise the share"
    raise InputError(
        f"{source}: {bad.height} of {rows} {name} were refused, {limit}; most often ({worst['rows']}): "
        f"{worst['reason']}, such as {example['value']!r} in {where}; {way_out}"
    )


def _counts(table: Sifted) -> Facts:
    kept, rejected = table.kept.height, table.rejects.height
    return {"rows_in": kept + rejected, "rows_kept": kept, "rows_rejected": rejected}
