"""A MovieLens release into typed Parquet: good rows kept, bad rows counted and named in ``rejects.parquet``.

Built for 32 million ratings: they are cast while they stream, so that only numbers are held, and the text of a refused
row is fetched from the file afterwards.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from tripletune.config import IngestConfig
from tripletune.data.archive import unpack
from tripletune.data.catalogue import read_links, read_movies, read_tags
from tripletune.data.layouts import KNOWN_FILES, Layout, find_layout
from tripletune.data.ratings import read_ratings
from tripletune.data.tables import Sifted
from tripletune.errors import InputError
from tripletune.paths import SCRATCH, Facts, write_atomically

_ROW_GROUP = 1 << 18


def ingest_release(release: Path, out: Path, settings: IngestConfig) -> Facts:
    """Read a release and write ``ratings movies tags links rejects .parquet``.

    Args:
        release: a folder or a zip in one of the layouts of ``layouts.py``; also when it lies one folder down.
        out: the work folder.
        settings: domain of a rating, and the share of refused ratings at which to stop.

    Returns:
        ``rows_in = rows_kept + rows_rejected`` of the ratings, the same for each table under ``tables``, rejects by
        reason over all tables, and counts of viewers and movies.

    Raises:
        InputError: the release is missing, damaged or of no known layout, a header is not the expected one, a table
            has no usable rows, or more than ``max_reject_share`` of the ratings were refused.
    """
    scratch = out / SCRATCH
    layout, folder = _open(release, scratch)
    tables = {"movies": read_movies(folder, layout, scratch)}
    movie_ids = tables["movies"].kept["movie_id"]
    tables["ratings"] = read_ratings(folder, layout, movie_ids, settings, scratch)
    _refuse_bad_ratings(release, tables["ratings"], settings)
    tables["tags"] = read_tags(folder, layout, movie_ids, scratch)
    tables["links"] = read_links(folder, layout, movie_ids, scratch)
    rejects = pl.concat([table.rejects for table in tables.values()]).sort("file", "line")
    for name, frame in {**{name: table.kept for name, table in tables.items()}, "rejects": rejects}.items():
        _write(frame, out / f"{name}.parquet")
    shutil.rmtree(scratch, ignore_errors=True)
    by_reason = rejects.group_by("reason").len().sort("reason").iter_rows()
    return {
        "layout": layout.name,
        **_counts(tables["ratings"]),
        "rejected_by_reason": dict(by_reason),
        "tables": {name: _counts(table) for name, table in tables.items()},
        "viewers": tables["ratings"].kept["user_id"].n_unique(),
        "movies": movie_ids.len(),
    }


def _open(release: Path, scratch: Path) -> tuple[Layout, Path]:
    if not release.exists():
        raise InputError(f"{release} does not exist; name a MovieLens release, a folder or a zip")
    if release.is_dir():
        return find_layout(release, release)
    if release.suffix.lower() != ".zip":
        raise InputError(f"{release} is neither a folder nor a .zip; name the folder of the release, or its zip")
    unpacked = scratch / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    return find_layout(unpack(release, KNOWN_FILES, unpacked), release)


def _refuse_bad_ratings(release: Path, ratings: Sifted, settings: IngestConfig) -> None:
    counts = _counts(ratings)
    if counts["rows_rejected"] <= settings.max_reject_share * counts["rows_in"] and counts["rows_kept"]:
        return
    reasons = ratings.rejects.group_by("reason").agg(pl.len().alias("rows"), pl.col("line").min())
    worst = reasons.sort("rows", "reason", descending=[True, False]).row(0, named=True)
    example = ratings.rejects.filter(pl.col("line") == worst["line"]).row(0, named=True)
    where = f"{example['file']} line {example['line']}" + (f", {example['column']}" if example["column"] else "")
    raise InputError(
        f"{release}: {counts['rows_rejected']} of {counts['rows_in']} ratings were refused, more than the share "
        f"ingest.max_reject_share = {settings.max_reject_share}; most often ({worst['rows']}): {worst['reason']}, "
        f"such as {example['value']!r} in {where}; repair the file or raise the share"
    )


def _counts(table: Sifted) -> Facts:
    kept, rejected = table.kept.height, table.rejects.height
    return {"rows_in": kept + rejected, "rows_kept": kept, "rows_rejected": rejected}


def _write(frame: pl.DataFrame, path: Path) -> None:
    write_atomically(path, lambda part: frame.write_parquet(part, compression="zstd", row_group_size=_ROW_GROUP))
