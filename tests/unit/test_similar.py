"""Similar users: against a dense float64 reference, and by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import small_world
import torch

from tripletune.models.lightgcn.serve import LightGCNFit, load_lightgcn
from tripletune.models.serving.catalogue import LOOKED_UP, Catalogue
from tripletune.models.serving.topk import Ragged
from tripletune.retrieve.histories import read_fit_likes
from tripletune.retrieve.similar import Neighbours


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world.make_world(tmp_path_factory.mktemp("world"))


def unseen_mask(num_viewers):
    return Ragged(np.zeros(num_viewers + 1, dtype=np.int64), np.empty(0, dtype=np.int64))


def test_nearest_are_those_of_dense_cosines(world):
    fit = load_lightgcn(world.lightgcn, 7)["b"]
    likes = read_fit_likes(world.lightgcn, "b")
    near = Neighbours.build(fit, likes, seed=7)
    asked_UD = torch.randn(9, 8, generator=torch.Generator().manual_seed(5))
    users_U = np.array([1, 2, 3, 4, 5, 6, 7, -1, 40])
    user_UK, _ = near.nearest(asked_UD, users_U, 4)

    vectors_VD = near.unit_VD.double().numpy()
    asked = asked_UD.double().numpy()
    cosine_UV = asked @ vectors_VD.T / np.linalg.norm(asked, axis=1, keepdims=True)
    cosine_UV[users_U[:, None] == near.users_V[None, :]] = -np.inf
    np.testing.assert_array_equal(user_UK, np.argsort(-cosine_UV, axis=1)[:, :4])


def test_a_vector_is_that_of_the_viewer_in_its_place(world):
    fit = load_lightgcn(world.lightgcn, 7)["b"]
    likes = read_fit_likes(world.lightgcn, "b")
    near = Neighbours.build(fit, likes, seed=7)
    for user, vector_D in zip(near.users_V, near.unit_VD, strict=True):
        mine = likes.filter(pl.col("user_id") == user).sample(fraction=1.0, shuffle=True, seed=1)
        films_SD = fit.pool_vectors_MD[fit.catalogue.columns(mine["movie_id"].to_numpy())].double().numpy()
        sum_D = (2.0 ** (-mine["age"].to_numpy() / fit.half_life) if fit.half_life else np.ones(len(mine))) @ films_SD
        np.testing.assert_allclose(vector_D, sum_D / np.linalg.norm(sum_D), atol=1e-5)


def test_films_are_ordered_by_the_summed_cosines_of_those_who_liked_them(world):
    fit = load_lightgcn(world.lightgcn, 7)["b"]
    likes = read_fit_likes(world.lightgcn, "b")
    near = Neighbours.build(fit, likes, seed=7)
    asked_UD = torch.randn(5, 8, generator=torch.Generator().manual_seed(6))
    users_U = np.arange(1, 6)
    seen = Ragged.from_pairs(np.repeat(np.arange(5), 10), np.tile(np.arange(10), 5), 5)
    got_UF = near.films(asked_UD, users_U, seen, 6, 8)

    user_UK, cosine_UK = near.nearest(asked_UD, users_U, 6)
    for row in range(5):
        votes = np.zeros(small_world.NUM_FILMS)
        for viewer, cosine in zip(user_UK[row], cosine_UK[row].tolist(), strict=True):
            liked = likes.filter(pl.col("user_id") == near.users_V[viewer])["movie_id"]
            votes[fit.catalogue.columns(liked.to_numpy())] += max(cosine, 0)
        votes[:10] = 0
        best = [c for c in np.lexsort((np.arange(len(votes)), -votes.round(5))) if votes[c] > 0][:8]
        assert got_UF[row][got_UF[row] >= 0].tolist() == best


def two_tastes():
    """Users 1, 2 like films 1, 2; user 3 likes film 3; vectors of films are axes."""
    fit = LightGCNFit(
        catalogue=Catalogue([1, 2, 3], seed=0),
        pool_vectors_MD=torch.eye(3)[torch.from_numpy(Catalogue([1, 2, 3], seed=0).order_M)],
        movie_vectors_MD=torch.eye(3),
        bias_M=torch.zeros(3),
        half_life=0.0,
        power=1.0,
    )
    likes = pl.DataFrame({"user_id": [1, 1, 2, 2, 3], "movie_id": [1, 2, 1, 2, 3], "age": [0, 1, 0, 1, 0]})
    return fit, Neighbours.build(fit, likes, seed=0)


def test_nobody_is_their_own_neighbour():
    _, near = two_tastes()
    user_UK, _ = near.nearest(torch.tensor([[1.0, 1.0, 0.0]]), np.array([1]), 2)
    assert near.users_V[user_UK[0]].tolist() == [2, 3]


def test_a_film_that_only_viewers_of_another_taste_liked_is_not_suggested():
    fit, near = two_tastes()
    films_UF = near.films(torch.tensor([[1.0, 1.0, 0.0]]), np.array([1]), unseen_mask(1), 2, 3)
    assert sorted(fit.catalogue.movie_ids(films_UF[0]).tolist()) == [-1, 1, 2]


def test_a_viewer_without_likes_has_no_similar_viewers():
    _, near = two_tastes()
    films_UF = near.films(torch.zeros(1, 3), np.array([9]), unseen_mask(1), 2, 2)
    assert films_UF.tolist() == [[-1, -1]]


@pytest.mark.parametrize(("fit", "labels"), [("a", ["graph"]), ("b", ["graph", "target"])])
def test_neighbours_are_made_of_the_rows_of_their_fit(world, fit, labels):
    rows = small_world.read_split(world)
    want = rows.filter(pl.col("label").is_in(labels) & ~pl.col("unseen"))
    got = read_fit_likes(world.lightgcn, fit)
    assert set(got.select("user_id", "movie_id").iter_rows()) == set(want.select("user_id", "movie_id").iter_rows())
    newest = want.group_by("user_id").agg(pl.col("movie_id").sort_by("position").last())
    assert set(got.filter(pl.col("age") == 0).select("user_id", "movie_id").iter_rows()) == set(newest.iter_rows())
    near = Neighbours.build(load_lightgcn(world.lightgcn, 7)[fit], got, seed=7)
    assert near.like_counts_M.sum() == len(want)


def test_viewers_of_the_opposite_taste_count_nothing():
    fit, near = two_tastes()
    films_UF = near.films(torch.tensor([[-1.0, -1.0, 0.5]]), np.array([9]), unseen_mask(1), 3, 3)
    assert fit.catalogue.movie_ids(films_UF[0]).tolist() == [3, -1, -1]


@pytest.mark.parametrize("offset", [0, LOOKED_UP])
def test_films_are_found_by_id_and_others_have_no_column(offset):
    """Small ids stand in a table; others are searched for."""
    ids_M = np.array([7, 3, 1_000, 12]) + offset
    catalogue = Catalogue(ids_M, seed=3)
    columns_M = catalogue.columns(ids_M)
    assert sorted(columns_M) == [0, 1, 2, 3]
    assert catalogue.movie_ids(columns_M).tolist() == ids_M.tolist()
    strangers = np.array([[0, -1, -5], [4, 1_001, 2**31 - 1], [offset + 8, 2**40, -(2**62)]])
    assert (catalogue.columns(strangers) == -1).all()
    assert catalogue.columns(np.empty(0, dtype=np.int32)).shape == (0,)
