"""Prompts made outside the stages are those of the shards, and so is what a version of another contract is asked."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.flows.conftest import MicroRun
from tripletune.serve.prompting import Prompter, rows_of
from tripletune.store.shards import shard_files, split_files


@pytest.mark.parametrize("purpose", ["valid", "test"])
def test_prompts_of_held_out_queries_are_those_of_the_shards_column_by_column(micro: MicroRun, purpose: str) -> None:
    prompter = Prompter.load(micro.paths, micro.record.settings(), None)
    files: list[Path] = list(split_files(micro.paths.folder("split")).values())
    shards = pl.read_parquet(shard_files(micro.paths.folder("generate") / purpose)).sort("user_id", "cutoff")
    queries = shards.select("user_id", "purpose", "cutoff", "unseen")
    made = prompter.prompts(rows_of(files, queries["user_id"]), queries)
    assert made.height
    assert_frame_equal(made.sort("user_id", "cutoff"), shards)
