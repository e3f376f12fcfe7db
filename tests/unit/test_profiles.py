"""The user's preference profile by relation, against plain loops over the published files."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest
import small_world
from safetensors.numpy import load_file

from tripletune.config import RetrieveConfig
from tripletune.retrieve import profiles
from tripletune.retrieve.candidates import retrieve_all
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import PROFILES

SEED = 7
FIT = {"train": "a", "valid": "b", "test": "b"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    run(world)
    return world


def run(world) -> pl.DataFrame:
    stages = world.split, world.knowledge, world.specialists, world.retrieve
    retrieve_all(*stages, RetrieveConfig(retriever="lightgcn", num_candidates=5), num_liked_triples=3, seed=SEED)
    return read(world)


def read(world) -> pl.DataFrame:
    return pl.read_parquet(world.retrieve / "profiles" / "shard-*.parquet")


def liked_before(world, user: int, purpose: str) -> list[int]:
    """Newest first."""
    label = {"train": "target"}.get(purpose, purpose)
    rows = small_world.read_split(world).filter(user_id=user)
    cutoff = rows.filter(label=label)["position"].min()
    return rows.filter(pl.col("position") < cutoff, pl.col("label") != "other")["movie_id"].to_list()[::-1]


def by_loops(world, user: int, purpose: str) -> dict[str, tuple[float, float]]:
    """Mass and attention of each relation, film by film and triple by triple."""
    fit = FIT[purpose]
    vectors = load_file(world.rgat / f"fit_{fit}.safetensors")
    pooling = json.loads((world.rgat / "pooling.json").read_text())
    entity = dict(pl.read_parquet(world.rgat / "entities.parquet").select("key", "row").iter_rows())
    named = {"person:nm9"} ^ set(entity)
    liked = liked_before(world, user, purpose)
    weights = [2 ** (-age / pooling["half_life"]) for age in range(len(liked))]
    viewer = sum(w * vectors["pool_vectors"][film - 1].astype(float) for w, film in zip(weights, liked, strict=True))
    viewer = viewer / sum(weights) ** pooling["power"]
    total: dict[str, list[float]] = {}
    films = 0
    attention = pl.read_parquet(world.rgat / "attention.parquet").filter(fit=fit)
    for film in liked:
        facts = [row for row in attention.filter(movie_id=film).iter_rows(named=True) if row["entity"] in named]
        films += bool(facts)
        dots = [float(viewer @ vectors["entity_vectors"][entity[row["entity"]]].astype(float)) for row in facts]
        powers = [row["alpha"] * math.exp(1.5 * dot / math.sqrt(6)) for row, dot in zip(facts, dots, strict=True)]
        for row, power in zip(facts, powers, strict=True):
            both = total.setdefault(row["relation"], [0.0, 0.0])
            both[0] += power / sum(powers)
            both[1] += row["alpha"] / sum(fact["alpha"] for fact in facts)
    return {relation: (mass / films, alpha / films) for relation, (mass, alpha) in total.items()}


@pytest.mark.parametrize("user", [1, 18, small_world.NUM_VIEWERS])
@pytest.mark.parametrize("purpose", ["train", "valid", "test"])
def test_a_profile_is_the_mean_posterior_by_relation_over_the_likes_before_the_cutoff(world, user, purpose):
    got = read(world).filter(user_id=user, purpose=purpose)
    if purpose == "train" and user == small_world.NUM_VIEWERS:
        assert got.is_empty()  # unseen users are in no training example
        return
    want = by_loops(world, user, purpose)
    assert got["relation"].to_list() == sorted(want)
    for relation, mass, attention in got.select("relation", "mass", "attention").iter_rows():
        assert (mass, attention) == pytest.approx(want[relation], rel=1e-5)


def test_every_question_with_a_known_like_has_one_and_its_shares_sum_to_one(world):
    got = read(world)
    assert got.schema == PROFILES
    for shard in (world.retrieve / "profiles").iterdir():
        assert pl.read_parquet(shard).equals(pl.read_parquet(shard).sort(*QUERY_KEY, "relation"))
    sums = got.group_by(QUERY_KEY).agg(pl.col("mass", "attention").sum(), pl.col("films").n_unique())
    asked = pl.read_parquet(world.retrieve / "retrieved" / "shard-*.parquet").select(QUERY_KEY)
    assert sums.select(QUERY_KEY).sort(QUERY_KEY).equals(asked.sort(QUERY_KEY))
    assert np.allclose(sums.select("mass", "attention").to_numpy(), 1.0, atol=1e-6)
    assert (sums["films"] == 1).all()  # distinct values


def test_films_without_a_fact_do_not_count(world):
    user, purpose = next(
        (user, purpose)
        for user in range(1, small_world.NUM_VIEWERS)
        for purpose in ("valid", "test")
        if small_world.NUM_FILMS in liked_before(world, user, purpose)
    )
    got = read(world).filter(user_id=user, purpose=purpose)
    assert got["films"][0] == len(liked_before(world, user, purpose)) - 1


def test_the_size_of_the_blocks_changes_nothing(world, monkeypatch, tmp_path):
    before = read(world)
    monkeypatch.setattr(profiles, "LIKES_AT_ONCE", 3)
    assert run(world).select("mass").to_numpy() == pytest.approx(before.select("mass").to_numpy(), abs=1e-7)
