"""Shards are listed in order of their bucket, by their name alone."""

import pytest

from tripletune.errors import InputError
from tripletune.store.shards import shard_files, shard_name, split_file, split_files


def test_files_are_listed_by_bucket_and_others_passed_over(tmp_path):
    for number in ("010", "002"):
        split_file(tmp_path, number).parent.mkdir()
        split_file(tmp_path, number).touch()
        (tmp_path / shard_name(number)).touch()
    for other in (".shard-003.parquet.part", "rankings.parquet", "shard=004"):
        (tmp_path / other).touch()
    assert split_files(tmp_path) == {number: split_file(tmp_path, number) for number in ("002", "010")}
    assert shard_files(tmp_path) == [tmp_path / "shard-002.parquet", tmp_path / "shard-010.parquet"]
    assert shard_files(tmp_path / "absent") == []
    with pytest.raises(InputError, match="run the split stage"):
        split_files(tmp_path / "absent")
