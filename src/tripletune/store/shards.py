"""File names of shards: one file per bucket of users and table, under the bucket's number in every stage's folder."""

from __future__ import annotations

from pathlib import Path

from tripletune.errors import InputError


def split_file(split: Path, number: str) -> Path:
    """The split's rows of one bucket; ``number`` has three digits, as ``split_files`` gives it."""
    return split / f"shard={number}" / "part.parquet"


def split_files(split: Path) -> dict[str, Path]:
    """The split's files by number of the bucket (``000``...), in order.

    Raises:
        InputError: there are none.
    """
    files = {path.parent.name.removeprefix("shard="): path for path in sorted(split.glob("shard=*/part.parquet"))}
    if not files:
        raise InputError(f"no shard=NNN/part.parquet in {split}; run the split stage")
    return files


def shard_name(number: str) -> str:
    """The name of a bucket's file in every other folder."""
    return f"shard-{number}.parquet"


def shard_files(folder: Path) -> list[Path]:
    """The files named by ``shard_name`` in a folder, in order; none where it has none or is not there."""
    return sorted(folder.glob(shard_name("*")))
