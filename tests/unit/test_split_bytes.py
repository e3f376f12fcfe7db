"""Bytes of the shards do not depend on row order, number of threads or block size."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.unit.test_split import random_ratings
from tripletune.config import SplitConfig
from tripletune.data.split import write as split
from tripletune.data.split.write import write_split
from tripletune.schemas.split import SPLIT

SETTINGS = SplitConfig(shards=3)
PROGRAM = """
import sys
from pathlib import Path
from tests.unit.test_split_bytes import SETTINGS, digests
from tripletune.data.split.write import write_split
write_split(Path(sys.argv[1]), Path(sys.argv[2]), SETTINGS, 0)
print(digests(Path(sys.argv[2])))
"""


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.parquet"))
    }


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    random_ratings(5).sort("user_id", "movie_id").write_parquet(tmp_path / "ratings.parquet")
    return tmp_path / "ratings.parquet"


def written(ratings: Path, out: Path, settings: SplitConfig = SETTINGS) -> dict[str, str]:
    write_split(ratings, out, settings, 0)
    return digests(out)


@pytest.mark.parametrize("shuffle", [1, 2, 3])
def test_the_order_of_a_viewers_rows_and_the_row_groups_of_the_input_do_not_show(ratings, tmp_path, shuffle):
    shuffled = pl.read_parquet(ratings).sample(fraction=1.0, shuffle=True, seed=shuffle).sort("user_id")
    shuffled.write_parquet(tmp_path / "shuffled.parquet", row_group_size=100 * shuffle)
    assert written(tmp_path / "shuffled.parquet", tmp_path / "a") == written(ratings, tmp_path / "b")


@pytest.mark.parametrize("protocol", ["leave_one_out", "ratio"])
def test_the_size_of_a_block_does_not_show(ratings, tmp_path, monkeypatch, protocol):
    settings = SETTINGS.model_copy(update={"protocol": protocol})
    whole = written(ratings, tmp_path / "whole", settings)
    for size in (97, 1):
        monkeypatch.setattr(split, "_BLOCK", size)
        assert written(ratings, tmp_path / str(size), settings) == whole


def test_the_number_of_threads_does_not_show(ratings, tmp_path):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(ratings), str(tmp_path / f"{threads} threads")],
            env={**os.environ, "POLARS_MAX_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for threads in (1, 2, 4)
    ]
    told = {process.communicate()[0] for process in running}
    assert told == {f"{written(ratings, tmp_path / 'here')}\n"}


def test_a_shard_without_viewers_is_an_empty_file_of_the_same_schema(tmp_path):
    random_ratings(4, viewers=2).write_parquet(tmp_path / "ratings.parquet")
    write_split(tmp_path / "ratings.parquet", tmp_path / "out", SplitConfig(shards=8), 0)
    shards = [pl.read_parquet(path, hive_partitioning=False) for path in (tmp_path / "out").rglob("part.parquet")]
    assert len(shards) == 8
    assert sum(shard.is_empty() for shard in shards) >= 6
    assert all(shard.schema == SPLIT for shard in shards)
