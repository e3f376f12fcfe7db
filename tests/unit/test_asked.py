"""Queries of a retrieve stage: the purposes of a config, and enough users to compare the retrievers."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import small_world

from tripletune.config import RetrieveConfig
from tripletune.config.presets import parse_config
from tripletune.errors import ConfigError
from tripletune.retrieve.candidates import retrieve_all
from tripletune.schemas.query import QUERY_KEY
from tripletune.stable_hash import VIEWERS, mix

SEED = 7


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world.make_world(tmp_path_factory.mktemp("world"))


def retrieve(world, out: Path, **settings) -> dict:
    out.mkdir()
    config = RetrieveConfig(retriever="lightgcn", num_candidates=6, **settings)
    stages = world.split, world.knowledge, world.specialists, out, config
    return retrieve_all(*stages, num_liked_triples=2, seed=SEED)


@pytest.fixture(scope="module")
def everything(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "all"
    retrieve(world, out)
    return out


def read(out: Path, table: str) -> pl.DataFrame:
    return pl.read_parquet(out / table / "shard-*.parquet")


@pytest.mark.bytes
def test_only_the_purposes_asked_for_are_made_and_they_are_the_same(world, everything, tmp_path):
    facts = retrieve(world, tmp_path / "test", purposes=("test",))
    assert list(facts["viewers"]) == ["test"]
    for table in ("retrieved", "choices", "profiles"):
        whole = read(everything, table).filter(purpose="test")
        assert len(whole)
        assert read(tmp_path / "test", table).equals(whole)
    rankings = pl.read_parquet(everything / "rankings.parquet").filter(purpose="test")
    assert pl.read_parquet(tmp_path / "test" / "rankings.parquet").equals(rankings)


def test_no_purpose_at_all_is_refused():
    with pytest.raises(ConfigError, match="purposes"):
        parse_config({"dataset": "x", "retrieve": {"purposes": []}}, "here")


def test_all_retrievers_rank_for_the_same_viewers_who_are_the_first_that_rank_takes(world, everything, tmp_path):
    retrieve(world, tmp_path / "some", ranked_viewers=9)
    whole = pl.read_parquet(everything / "rankings.parquet")
    users = sorted(whole["user_id"].unique(), key=lambda user: int(mix(user, SEED + VIEWERS)))[:9]
    some = pl.read_parquet(tmp_path / "some" / "rankings.parquet")
    assert some.equals(whole.filter(pl.col("user_id").is_in(users)))
    assert some.group_by(QUERY_KEY).len()["len"].unique().to_list() == [3]
    assert read(tmp_path / "some", "retrieved").equals(read(everything, "retrieved"))
