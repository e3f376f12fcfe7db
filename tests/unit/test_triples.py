"""Hint 2: which triple is chosen, in each mode."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
import small_world
import torch
from safetensors.torch import load_file

from tripletune.models.rgat.serve import load_rgat
from tripletune.models.serving.catalogue import Likes
from tripletune.models.serving.pooling import pool_users
from tripletune.retrieve.triples import TripleTable, choose_triples, read_triples

SEED = 7
FILMS = np.arange(1, small_world.NUM_FILMS + 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world.make_world(tmp_path_factory.mktemp("world"))


LIKES = Likes(user_E=np.array([0, 0, 0, 1, 1]), movie_E=np.array([12, 24, 7, 3, 50]), age_E=np.array([0, 1, 2, 0, 1]))
USERS = np.array([101, 102])


def choose(world, mode, num=1, films=FILMS, viewer=0, likes=LIKES, seed=SEED):
    rgat = load_rgat(world.rgat, SEED)["b"]
    table = TripleTable.build(rgat, read_triples(world.knowledge), SEED)
    chosen = choose_triples(
        table, rgat, likes, USERS, np.full(len(films), viewer), films, mode=mode, num=num, seed=seed
    )
    return chosen.with_columns(movie_id=pl.Series(films)[chosen["pair"].to_numpy()])


def attention(world):
    return pl.read_parquet(world.rgat / "attention.parquet").filter(pl.col("fit") == "b")


def test_a_personal_score_is_recomputed_from_the_published_files(world):
    vectors = load_file(world.rgat / "fit_b.safetensors")
    pooling = json.loads((world.rgat / "pooling.json").read_text())
    rows = dict(pl.read_parquet(world.rgat / "movies.parquet").select("movie_id", "row").iter_rows())
    entity = dict(pl.read_parquet(world.rgat / "entities.parquet").select("key", "row").iter_rows())
    weight = {(m, r, e): a for m, r, e, a in attention(world).drop("fit").iter_rows()}
    mine = LIKES.user_E == 0
    user_D = pool_users(
        vectors["pool_vectors"],
        torch.zeros(mine.sum(), dtype=torch.int64),
        torch.tensor([rows[m] for m in LIKES.movie_E[mine].tolist()]),
        torch.from_numpy(LIKES.age_E[mine]),
        1,
        pooling["half_life"],
        pooling["power"],
    )[0].double()
    chosen = choose(world, "personal", num=5)
    assert len(chosen) > 150
    for movie, relation, key, score in chosen.select("movie_id", "relation", "entity", "score").iter_rows():
        dot = float(user_D @ vectors["entity_vectors"][entity[key]].double())
        want = np.log(np.float64(np.float32(weight[movie, relation, key]))) + 1.5 * dot / np.sqrt(6)
        assert score == pytest.approx(want, rel=1e-6)


def test_the_first_triple_has_the_highest_score_of_the_film(world):
    everything = choose(world, "personal", num=5)
    for _, film in everything.group_by("movie_id"):
        film = film.sort("rank")
        assert film["rank"].to_list() == list(range(len(film)))
        assert film["score"].is_sorted(descending=True)
    best = everything.filter(pl.col("rank") == 0).drop("rank")
    assert choose(world, "personal", num=1).drop("rank").equals(best)


def test_the_personal_choice_changes_with_the_viewer_and_the_published_one_does_not(world):
    for mode, should_differ in (("personal", True), ("published", False)):
        first, second = (
            choose(world, mode, viewer=viewer).select("movie_id", "entity", "relation") for viewer in (0, 1)
        )
        assert first.equals(second) is not should_differ


def test_the_published_score_is_alpha_times_the_dot_product_of_film_and_entity(world):
    vectors = load_file(world.rgat / "fit_b.safetensors")
    entity = dict(pl.read_parquet(world.rgat / "entities.parquet").select("key", "row").iter_rows())
    weight = {(m, r, e): a for m, r, e, a in attention(world).drop("fit").iter_rows()}
    for movie, relation, key, score in (
        choose(world, "published", num=5).select("movie_id", "relation", "entity", "score").iter_rows()
    ):
        dot = float(vectors["pool_vectors"][movie - 1].double() @ vectors["entity_vectors"][entity[key]].double())
        assert score == pytest.approx(weight[movie, relation, key] * dot, rel=1e-6)


def test_most_shared_counts_liked_films_not_triples(world):
    # films 12, 24 share director nm0 and genre Crime; 7 has director nm7, actor nm2; of film 36's triples nm0 and Crime
    # are shared by two liked films each; an entity in two relations of one film counts once
    told = choose(world, "most-shared", num=5, films=np.array([36, 5]))
    counts = {(m, r, e): s for m, r, e, s in told.select("movie_id", "relation", "entity", "score").iter_rows()}
    facts = small_world.triples()
    for (movie, relation, entity), count in counts.items():
        liked = facts.filter(pl.col("movie_id").is_in([12, 24, 7]) & (pl.col("entity") == entity))
        assert count == liked["movie_id"].n_unique(), (movie, relation, entity)
    assert counts[36, "director", "person:nm0"] == 2
    assert told.filter(movie_id=36)["score"][0] == 2
    # film 3, liked by the other user, is directed by nm3 and stars nm3
    once = choose(world, "most-shared", num=5, films=np.array([15]), viewer=1)
    assert once.filter(entity="person:nm3", relation="director")["score"].to_list() == [1]


def test_a_random_choice_is_seeded_by_viewer_film_and_triple(world):
    first, again = choose(world, "random"), choose(world, "random")
    assert first.equals(again)
    assert not first["entity"].equals(choose(world, "random", viewer=1)["entity"])
    assert not first["entity"].equals(choose(world, "random", seed=8)["entity"])
    alone = choose(world, "random", films=FILMS[4:5])
    assert alone["entity"].to_list() == first.filter(movie_id=5)["entity"].to_list()
    assert first["score"].is_between(0, 1).all()
    assert set(first["relation"]) == {"genre", "director", "actor", "decade"}


def test_none_and_zero_triples_choose_nothing(world):
    assert choose(world, "none").is_empty()
    assert choose(world, "personal", num=0).is_empty()


def test_a_film_without_triples_gets_none_and_a_nameless_person_is_never_told(world):
    told = choose(world, "personal", num=5)
    assert told.filter(movie_id=small_world.NUM_FILMS).is_empty()
    assert "person:nm9" not in set(told["entity"])
    assert "person:nm9" in set(small_world.triples()["entity"])


def test_a_triple_that_a_pinned_specialist_does_not_know_is_skipped(world, tmp_path):
    pinned = small_world.World(tmp_path)
    shutil.copytree(world.knowledge, pinned.knowledge)
    shutil.copytree(world.rgat, pinned.rgat)
    known = pl.read_parquet(pinned.rgat / "attention.parquet").filter(
        (pl.col("relation") != "director") & (pl.col("movie_id") != 20)
    )
    known.write_parquet(pinned.rgat / "attention.parquet")
    told = choose(pinned, "personal", num=5)
    assert "director" not in set(told["relation"])
    assert 20 not in set(told["movie_id"])
    assert 21 in set(told["movie_id"])


def test_equal_scores_fall_by_hash_and_not_by_the_order_of_relations(world, tmp_path):
    tied = small_world.World(tmp_path)
    shutil.copytree(world.knowledge, tied.knowledge)
    shutil.copytree(world.rgat, tied.rgat)
    pl.read_parquet(tied.rgat / "attention.parquet").with_columns(alpha=pl.lit(0.25, dtype=pl.Float32)).write_parquet(
        tied.rgat / "attention.parquet"
    )
    nobody = Likes(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    told = choose(tied, "personal", likes=nobody)
    assert told["score"].n_unique() == 1
    assert told["relation"].n_unique() == 4
