"""Incremental runs: reuse the rows of an earlier output for users whose evidence has not changed.

With pinned specialists, successive runs differ in ratings alone. An earlier output of the same stage whose other
ingredients are equal holds the rows of every user whose evidence is the same; those are copied, and the union has the
bytes of a full run. The earlier output is a shortcut: it is no part of a fingerprint, and may be gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import RETRIEVED
from tripletune.store.fingerprint import Ingredients, differences
from tripletune.store.parquet import write_parquet
from tripletune.store.paths import MANIFEST, RunPaths, damaged_files, read_manifest
from tripletune.store.read import read_parquet, scan_parquet
from tripletune.store.shards import shard_files

CARRIES_RATINGS = ("ingest", "split", "knowledge", "retrieve")
"""Parents that every run rebuilds; the part of them that matters is compared user by user, or by content."""

SameContent = Mapping[str, Callable[[Path, Path], bool]]
"""By parent: whether its earlier and its present output have the same content, as far as it matters."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A finished output of an earlier run that differs from this run's in ratings alone."""

    folder: Path
    parents: Mapping[str, Path]

    @property
    def name(self) -> str:
        """The first ten characters of its fingerprint."""
        return self.folder.name[:10]


def find_earlier(paths: RunPaths, stage: str, same: SameContent) -> Earlier | str:
    """Find the newest output of a stage that differs from this run's in ratings alone.

    Args:
        paths: of this run; parents are finished.
        stage: its name.
        same: for the parents whose content matters in addition to the ratings.

    Returns:
        That output, or the reason why the newest one cannot be reused.
    """
    home = paths.folder(stage).parent
    manifests = [path for path in home.glob(f"*/{MANIFEST}") if path.parent.suffix != ".work"]
    why = "there is no earlier output"
    for number, path in enumerate(sorted(manifests, key=_age)):
        manifest = read_manifest(path.parent)
        try:
            reason = "its files are gone" if manifest is None else _difference(paths, stage, manifest, same)
            if reason is None and (damaged := damaged_files(path.parent)):
                reason = f"{damaged[0]} is damaged"
        except OSError:  # gc may be removing it
            reason = "its files are gone"
        if reason is None and manifest is not None:
            return Earlier(path.parent, _parents(paths, manifest))
        if not number:
            why = f"of the last output ({path.parent.name[:10]}), {reason}"
    return why


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _difference(paths: RunPaths, stage: str, manifest: Mapping[str, Any], same: SameContent) -> str | None:
    """The first difference, other than ratings, between an output and this run's; None where there is none."""
    now = paths.ingredients[stage]
    lines = differences(_without_ratings(manifest["ingredients"]), _without_ratings(now))
    if lines:
        return lines[0]
    for parent, folder in _parents(paths, manifest).items():
        if parent not in (*same, "retrieve") or folder == paths.folder(parent):
            continue
        before = read_manifest(folder)
        if before is None:
            return f"its {parent} is gone"
        if parent == "retrieve":
            reason = _difference(paths, parent, before, same)
            if reason is None and _buckets(before) != _buckets(paths.manifest(parent)):
                reason = "it has another number of shards"
            if reason is None and (damaged := damaged_files(folder)):
                reason = f"{parent}/{damaged[0]} is damaged"
            if reason is not None:
                return reason
        elif not _is_same(same[parent], folder, paths.folder(parent)):
            return f"its {parent} has other content"
    return None


def _buckets(manifest: Mapping[str, Any]) -> set[str]:
    return {name for name in manifest["files"] if name.startswith("viewers/")}


def _is_same(compare: Callable[[Path, Path], bool], before: Path, now: Path) -> bool:
    try:
        return compare(before, now)
    except (OSError, pl.exceptions.PolarsError):
        return False


def _without_ratings(ingredients: Ingredients) -> Ingredients:
    parents = {name: value for name, value in ingredients["parents"].items() if name not in CARRIES_RATINGS}
    return {**ingredients, "parents": parents}


def _parents(paths: RunPaths, manifest: Mapping[str, Any]) -> dict[str, Path]:
    return {name: paths.root / paths.dataset / name / value for name, value in manifest["parents"].items()}


def same_files(before: Path, now: Path, names: tuple[str, ...]) -> bool:
    """Whether these files of two finished outputs have the same bytes, by their manifests."""
    manifests = [read_manifest(folder) for folder in (before, now)]
    hashes = [[one["files"][name]["sha256"] for name in names] if one else None for one in manifests]
    return hashes[0] is not None and hashes[0] == hashes[1]


def compare_users(before: pl.DataFrame, now: pl.DataFrame) -> pl.DataFrame:
    """Compare the users of two runs by their evidence.

    Args:
        before, now: ``schemas.VIEWERS`` of a bucket in two runs.

    Returns:
        ``user_id, why``: why a user's queries are rebuilt, null where nothing changed; users of either run.
    """
    both = before.join(now, on="user_id", how="full", suffix="_now", coalesce=True)
    same_films = pl.col("films") == pl.col("films_now")
    why = (
        pl.when(pl.col("rows").is_null())
        .then(pl.lit("new viewer"))
        .when(pl.col("rows_now").is_null())
        .then(pl.lit("gone"))
        .when(pl.col("rows") == pl.col("rows_now"))
        .then(None)
        .when(same_films)
        .then(pl.lit("rated again"))
        .when(pl.col("ratings") > pl.col("ratings_now"))
        .then(pl.lit("fewer ratings"))
        .otherwise(pl.lit("new ratings"))
    )
    return both.select("user_id", why=why).sort("user_id")


def write_unchanged(before: Path, now: Path, out: Path) -> dict[str, Any]:
    """Write, by bucket, the queries that both runs have, of users whose evidence is the same.

    Args:
        before, now: folders of two retrieve outputs that differ in ratings alone, of the same buckets.
        out: receives ``shard-NNN.parquet`` (``schemas.QUERY_KEY``), sorted.

    Returns:
        ``count_changes``.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = [path.name for path in shard_files(now / "viewers")]
    # all buckets at once: each costs more for its queries than for its rows
    outputs = [read_parquet([folder / "viewers" / name for name in names]) for folder in (before, now)]
    changes = compare_users(*outputs)
    same = changes.filter(pl.col("why").is_null())
    earlier, current = (
        scan_parquet([folder / "retrieved" / name for name in names], include_file_paths="file").select(
            *QUERY_KEY, "file"
        )
        for folder in (before, now)
    )
    kept = (
        current.join(earlier, on=QUERY_KEY, how="semi")
        .join(same.lazy(), on="user_id", how="semi")
        .sort(QUERY_KEY)
        .collect()
    )
    by_name = {Path(file).name: rows for (file,), rows in kept.partition_by("file", as_dict=True).items()}
    nobody = pl.DataFrame(schema={name: RETRIEVED[name] for name in QUERY_KEY})
    for name in names:
        write_parquet(out / name, by_name.get(name, nobody).select(*QUERY_KEY))
    return count_changes(changes)


def count_changes(viewers: pl.DataFrame) -> dict[str, Any]:
    """Facts for a manifest from ``compare_users``: how many users were reused, how many not and why."""
    counts = viewers["why"].drop_nulls().value_counts(sort=True)
    return {"viewers_reused": viewers["why"].null_count(), "viewers_changed": dict(counts.sort("why").iter_rows())}


def describe(stage: str, found: Earlier | str, facts: Mapping[str, Any]) -> str:
    """The log line of a stage that can reuse an earlier output."""
    if isinstance(found, str):
        return f"{stage}: every user is computed, nothing is reused: {found}"
    changed = ", ".join(f"{number:,} {why}" for why, number in facts["viewers_changed"].items())
    return f"{stage}: {facts['viewers_reused']:,} users as in {found.name}; rebuilt: {changed or 'none'}"
