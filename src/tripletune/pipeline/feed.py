"""The feed of ratings inside ingest: each file is parsed once and kept as an output of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tripletune.config import RunConfig
from tripletune.errors import InputError
from tripletune.pipeline.stage import Stage
from tripletune.store.fingerprint import fingerprint, input_checksums, sha256_file
from tripletune.store.paths import Facts, RunPaths, damaged_files

if TYPE_CHECKING:
    from tripletune.data.feed.parse import FeedPart
    from tripletune.data.feed.remote import SourceFile


def refuse_changes(paths: RunPaths, config: RunConfig) -> None:
    """Refuse to publish ingest when the release's files no longer have the checksums of its fingerprint.

    Raises:
        InputError: a file of the release changed in between.
    """
    now = release_checksums(config)
    for name, checksum in now.items():
        if paths.ingredients["ingest"]["inputs"].get(name) != checksum:
            raise InputError(f"{name} was changed while it was read; run again")


def parse_feed(paths: RunPaths, config: RunConfig, scratch: Path) -> tuple[list[FeedPart], Facts]:
    """Parse each file of the feed that no earlier run has parsed.

    Args:
        paths, config: of the run.
        scratch: folder for files that are fetched.

    Returns:
        The parsed rows by file, and facts: how many files there are, and how many were parsed.

    Raises:
        InputError: a file changed since the run began, or while it was read.
    """
    from tripletune.data.feed.parse import FeedPart, parse_feed_file
    from tripletune.data.feed.remote import fetch

    parts, reused = [], 0
    for file in _resolved_feed(paths, config):
        made_of = PARSED.ingredients(config, {}, {"file": file.checksum})
        one = RunPaths(
            root=paths.root,
            dataset=paths.dataset,
            fingerprints={PARSED.name: fingerprint(PARSED.name, made_of)},
            ingredients={PARSED.name: made_of},
        )
        # reused for months: a damaged one must not get into every run
        if one.is_done(PARSED.name) and damaged_files(one.folder(PARSED.name)):
            shutil.rmtree(one.folder(PARSED.name))
        reused += one.is_done(PARSED.name)

        def make(work: Path, file: SourceFile = file) -> Facts:
            path = fetch(file, scratch)
            facts = parse_feed_file(path, file.url, work, config.source.feed.columns, config.ingest)
            if file.is_remote:
                path.unlink()
            elif sha256_file(path) != file.checksum:
                raise InputError(f"{file.url} was changed while it was read; run again")
            return facts

        parts.append(FeedPart(one.build(PARSED.name, make), file.name))
    return parts, {"feed_files": len(parts), "feed_files_parsed": len(parts) - reused}


def _resolved_feed(paths: RunPaths, config: RunConfig) -> list[SourceFile]:
    """The feed's files that the fingerprint names; a file that was added since waits for the next run."""
    wanted = {name: sha for name, sha in paths.ingredients["ingest"]["inputs"].items() if name.startswith("feed/")}
    there = {f"feed/{file.name}": file for file in feed_files(config)}
    for name, checksum in wanted.items():
        if name not in there or there[name].checksum != checksum:
            raise InputError(f"{name.removeprefix('feed/')} in the feed was changed since this run began; run again")
    return [there[name] for name in wanted]


def feed_files(config: RunConfig) -> list[SourceFile]:
    """The files that the config's patterns name now, with their checksums."""
    from tripletune.data.feed.remote import list_files

    return list_files(config.source.feed.ratings) if config.source.feed.ratings else []


def release_checksums(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the release's files that are read."""
    from tripletune.data.release.layouts import files_read

    wanted = files_read(config.source.feed)
    named = {"movielens": Path(config.source.movielens)} if config.source.movielens else {}
    return input_checksums(named, read={"movielens": lambda below: below.name in wanted})


PARSED = Stage(
    name="parsed",
    run=parse_feed,
    part="shards",
    without=("data.feed.remote",),  # where the bytes come from; their checksum counts
    libraries=("polars", "pyarrow"),
    fields=("source.feed.columns", "ingest.rating_min", "ingest.rating_max", "ingest.earliest", "ingest.latest"),
)
"""One file of a feed, parsed: an output of its own, so that a later run need not parse it again."""
