"""EASE: against ridge regressions solved film by film, and as the retriever of the stage."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import psutil
import pytest
import small_world
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse

from tripletune.config import RetrieveConfig
from tripletune.errors import InputError
from tripletune.models.ease.fit import require_memory, solve, train_ease
from tripletune.models.ease.serve import EaseFit, load_ease
from tripletune.models.lightgcn.serve import load_lightgcn
from tripletune.models.serving.catalogue import Catalogue, Likes
from tripletune.models.serving.topk import Ragged
from tripletune.retrieve.candidates import retrieve_all
from tripletune.retrieve.retriever import Retriever
from tripletune.schemas.query import PURPOSES
from tripletune.schemas.retrieve import RANKED_ALWAYS

SEED = 7
FIT = {"train": ("a", ("graph",)), "valid": ("b", ("graph", "target")), "test": ("b", ("graph", "target"))}
DEFAULT = RetrieveConfig(retriever="ease", ease_lambda=3.0, num_candidates=12, hint_films=6, similar_films=0)
NUM_FILMS = small_world.NUM_FILMS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rows(world):
    return small_world.read_split(world)


def fit_films(world, folder, settings=DEFAULT):
    folder.mkdir(parents=True)
    return train_ease(world.split, folder, settings, SEED)


def retrieve(world, out, ease, settings=DEFAULT):
    out.mkdir(parents=True)
    return retrieve_all(
        world.split,
        world.knowledge,
        {**world.specialists, "ease": ease},
        out,
        settings,
        num_liked_triples=4,
        seed=SEED,
    )


@pytest.fixture(scope="module")
def fitted(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted") / "ease"
    fit_films(world, folder)
    return folder


@pytest.fixture(scope="module")
def out(world, fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "retrieve"
    retrieve(world, folder, fitted)
    return folder


def read(out):
    return pl.concat(pl.read_parquet(path) for path in sorted((out / "retrieved").glob("shard-*.parquet")))


def ridge_by_column(likes_VM, ridge):
    """For each film the ridge regression of its likes on those of the other films: no inverse of the whole, no -P/P."""
    num_films = likes_VM.shape[1]
    weights_MM = np.zeros((num_films, num_films))
    for film in range(num_films):
        others = np.delete(np.arange(num_films), film)
        rest = likes_VM[:, others]
        stacked = np.vstack([rest, np.sqrt(ridge) * np.eye(len(others))])
        wanted = np.concatenate([likes_VM[:, film], np.zeros(len(others))])
        weights_MM[others, film] = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    return weights_MM


def likes_of_fit(rows, labels):
    """Dense 0/1 of warm users by film id - 1."""
    kept = rows.filter(pl.col("label").is_in(labels), ~pl.col("unseen"))
    likes_VM = np.zeros((small_world.NUM_VIEWERS + 1, NUM_FILMS))
    likes_VM[kept["user_id"].to_numpy(), kept["movie_id"].to_numpy() - 1] = 1
    return likes_VM


def history(rows, user, cutoff, age):
    """What was rated before the cutoff, and the weight of every film."""
    before = rows.filter(pl.col("user_id") == user, pl.col("position") < cutoff)
    weights_M = np.zeros(NUM_FILMS)
    for newer, film in enumerate(before.filter(pl.col("rating") >= 4)["movie_id"].to_list()[::-1]):
        weights_M[film - 1] = np.exp(-newer / age) if age else 1.0
    return before["movie_id"].to_list(), weights_M


def best(scores_M, seen, num):
    """The films of the highest scores, which differ by more than what float32 can blur."""
    scores_M = scores_M.copy()
    scores_M[np.array(seen) - 1] = -np.inf
    order = np.argsort(-scores_M)[: num + 1]
    assert (np.diff(-scores_M[order]) > 2e-7).all()
    return (order[:num] + 1).tolist()


@pytest.fixture(scope="module")
def fit():
    """A fit on 200 users and 30 films, ids 101 to 130, and the dense matrix by column."""
    catalogue = Catalogue(np.arange(101, 131), SEED)
    random = np.random.default_rng(0)
    dense_VM = (random.random((200, 30)) < random.random(30) * 0.5).astype(float)
    return in_memory(dense_VM, catalogue, 7.0), dense_VM


def in_memory(dense_VM, catalogue, ridge):
    """A fit of all films of the catalogue, whose columns are those of the matrix."""
    likes_M = dense_VM.sum(axis=0).astype(np.float32)
    return EaseFit.build(catalogue, catalogue.ids_M, likes_M, solve(sparse.csr_array(dense_VM), ridge))


def test_weights_are_those_of_one_ridge_regression_per_film(fit):
    ease, dense_VM = fit
    np.testing.assert_allclose(ease.weights_FF, ridge_by_column(dense_VM, 7.0), atol=1e-6)
    assert not ease.weights_FF.diagonal().any()


def test_candidates_and_hint_are_those_of_a_dense_reference(world, out, rows):
    weights = {fit: ridge_by_column(likes_of_fit(rows, labels), 3.0) for fit, labels in FIT.values()}
    films = load_lightgcn(world.lightgcn, SEED)
    found = read(out)
    assert found["purpose"].unique().len() == 3
    for question in found.iter_rows(named=True):
        fit = FIT[question["purpose"]][0]
        seen, weights_M = history(rows, question["user_id"], question["cutoff"], 5.0)
        assert question["candidates"] == best(weights_M @ weights[fit], seen, 12)
        light = films[fit]
        liked = np.flatnonzero(weights_M) + 1
        ages = np.round(-5.0 * np.log(weights_M[liked - 1]))
        user = light.pool(Likes(np.zeros(len(liked), dtype=int), liked, ages.astype(int)), 1).double().numpy()[0]
        columns = light.catalogue.columns(question["candidates"])
        scores = light.movie_vectors_MD.double().numpy()[columns] @ user + light.bias_M.double().numpy()[columns]
        assert question["ranking"] == [question["candidates"][place] for place in np.argsort(-scores)[:6]]


def test_rankings_hold_ease_and_plain_ease_under_the_same_mask(out, rows):
    weights_MM = ridge_by_column(likes_of_fit(rows, FIT["test"][1]), 3.0)
    rankings = pl.read_parquet(out / "rankings.parquet")
    cutoffs = {(row["user_id"], row["purpose"]): row["cutoff"] for row in read(out).iter_rows(named=True)}
    names = {*RANKED_ALWAYS, "ease", "ease-plain"}
    assert rankings.group_by("user_id", "purpose").agg(pl.col("retriever").sort())["retriever"].to_list() == [
        sorted(names)
    ] * (2 * 39)
    for name, age in (("ease", 5.0), ("ease-plain", 0.0)):
        for row in rankings.filter(retriever=name).iter_rows(named=True):
            seen, weights_M = history(rows, row["user_id"], cutoffs[row["user_id"], row["purpose"]], age)
            assert row["top"] == best(weights_M @ weights_MM, seen, 20)
            assert row["answer"] not in seen


def test_the_published_recipe_is_filled_up_from_ease(world, fitted, out, rows, tmp_path):
    facts = retrieve(world, tmp_path / "kerag", fitted, DEFAULT.model_copy(update={"candidates": "kerag"}))
    assert facts["ceiling"] == {"valid": 1.0, "test": 1.0}
    answers = dict(rows.filter(pl.col("label") == "test").select("user_id", "movie_id").iter_rows())
    tops = {row["user_id"]: row["candidates"] for row in read(out).filter(purpose="test").iter_rows(named=True)}
    for question in read(tmp_path / "kerag").filter(purpose="test").iter_rows(named=True):
        answer = answers[question["user_id"]]
        fill = [film for film in tops[question["user_id"]] if film != answer][:9]
        assert set(question["candidates"]) == {answer, *fill}
        assert question["ranking"] == question["candidates"][:6]


def test_what_ease_was_fitted_to_is_written_for_the_audit(fitted, rows):
    warm = rows.filter(~pl.col("unseen"))
    for fit, labels in (("a", ["graph"]), ("b", ["graph", "target"])):
        want = warm.filter(pl.col("label").is_in(labels)).select("user_id", "movie_id").sort("user_id", "movie_id")
        got = pl.read_parquet(fitted / "trained_on.parquet").filter(fit=fit).select("user_id", "movie_id")
        assert got.equals(want)


def test_lightgcn_stays_the_retriever_beside_the_baseline(world, tmp_path):
    settings = RetrieveConfig(retriever="lightgcn")
    assert fit_films(world, tmp_path / "ease", settings)["films"] == {"b": NUM_FILMS}
    retrieve(world, tmp_path / "a", tmp_path / "ease", settings)
    rankings = pl.read_parquet(tmp_path / "a" / "rankings.parquet").filter(retriever="lightgcn")
    first = rankings.join(read(tmp_path / "a"), on=["user_id", "purpose"])
    assert first["top"].to_list() == first["candidates"].to_list()


def test_a_catalogue_beyond_the_limit_has_no_baseline(world, tmp_path):
    settings = RetrieveConfig(retriever="lightgcn", ease_max_films=NUM_FILMS - 1)
    assert fit_films(world, tmp_path / "ease", settings)["films"] == {}
    assert pl.read_parquet(tmp_path / "ease" / "trained_on.parquet").is_empty()
    retrieve(world, tmp_path / "a", tmp_path / "ease", settings)
    assert set(pl.read_parquet(tmp_path / "a" / "rankings.parquet")["retriever"]) == set(RANKED_ALWAYS)


def test_as_the_retriever_it_keeps_the_most_liked_films_within_the_limit(world, rows, tmp_path):
    settings = DEFAULT.model_copy(update={"ease_max_films": 30})
    assert fit_films(world, tmp_path / "ease", settings)["films"] == {"a": 30, "b": 30}
    retrieve(world, tmp_path / "a", tmp_path / "ease", settings)
    counts_M = likes_of_fit(rows, FIT["test"][1]).sum(axis=0)
    shown = read(tmp_path / "a").filter(pl.col("purpose") != "train")["candidates"].list.explode().unique().to_numpy()
    assert counts_M[shown - 1].min() >= np.sort(counts_M)[-30]


def test_a_viewer_of_unknown_films_gets_the_most_liked_ones(fit):
    ease, dense_VM = fit
    likes = Likes(*(np.array([value]) for value in (0, 999, 0)))
    top_UK = ease.top(likes, Ragged.from_pairs(np.array([0]), np.array([4]), 1), 1, 5, 5.0)
    counts_M = dense_VM.sum(axis=0)
    counts_M[4] = -1
    assert counts_M[top_UK[0]].tolist() == sorted(counts_M, reverse=True)[:5]


def test_newer_likes_weigh_more_and_age_0_counts_all_alike(fit):
    ease, dense_VM = fit
    films = ease.catalogue.movie_ids(np.array([3, 9, 20]))
    likes = Likes(np.zeros(3, dtype=int), films, np.array([2, 0, 1]))
    seen = Ragged.from_pairs(np.zeros(3, dtype=int), np.array([3, 9, 20]), 1)
    weights_MM = ridge_by_column(dense_VM, 7.0)
    for age, weights in ((1.5, np.exp(-np.array([2, 0, 1]) / 1.5)), (0.0, np.ones(3))):
        scores_M = weights @ weights_MM[[3, 9, 20]]
        scores_M[[3, 9, 20]] = -np.inf
        assert ease.top(likes, seen, 1, 8, age)[0].tolist() == np.argsort(-scores_M)[:8].tolist()


def test_everyone_liked_alike_falls_in_the_order_of_ties():
    catalogue = Catalogue(np.arange(30), SEED)
    weights_FF = solve(sparse.csr_array(np.ones((5, 20))), 500.0)
    ease = EaseFit.build(catalogue, catalogue.ids_M[:20], np.full(20, 5.0, dtype=np.float32), weights_FF)
    assert ease.columns_F.tolist() == list(range(20))
    assert ease.top(Likes(*[np.empty(0, dtype=int)] * 3), Ragged(np.zeros(2, dtype=int), np.empty(0, int)), 1, 25, 0.0)[
        0
    ].tolist() == [*range(20), *[-1] * 5]


def test_a_fit_for_the_comparison_alone_is_no_retriever(world, tmp_path):
    fit_films(world, tmp_path / "ease", RetrieveConfig(retriever="lightgcn"))
    with pytest.raises(
        InputError, match="'ease' uses EASE, which was fitted for the comparison alone; pin a run whose"
    ):
        retrieve(world, tmp_path / "out", tmp_path / "ease")


def test_a_fit_under_another_seed_keeps_its_weights_and_follows_the_order_of_ties(world, fitted):
    ids, weights = [], []
    for seed in (SEED, SEED + 1):
        ease = load_ease(fitted, load_lightgcn(world.lightgcn, seed)["b"].catalogue, ("b",))["b"]
        assert (np.diff(ease.columns_F) > 0).all()
        ids.append(ease.catalogue.movie_ids(ease.columns_F))
        by_id = np.argsort(ids[-1])
        weights.append(ease.weights_FF[np.ix_(by_id, by_id)])
    assert ids[0].tolist() != ids[1].tolist()
    np.testing.assert_array_equal(weights[0], weights[1])


@pytest.mark.parametrize("fault", ["short", "nan", "strange"])
def test_a_damaged_fit_is_refused_by_name(world, fitted, tmp_path, fault):
    folder = tmp_path / "ease"
    shutil.copytree(fitted, folder)
    tensors = load_file(folder / "fit_b.safetensors")
    if fault == "short":
        save_file(tensors | {"likes": tensors["likes"][:-1].clone()}, folder / "fit_b.safetensors")
    if fault == "nan":
        save_file(tensors | {"weights": tensors["weights"] * float("nan")}, folder / "fit_b.safetensors")
    if fault == "strange":
        movies = pl.read_parquet(folder / "movies.parquet").with_columns(pl.col("movie_id") + 1000)
        movies.write_parquet(folder / "movies.parquet")
    wanted = {"short": "fit_b.*different numbers", "nan": "'weights' holds NaN", "strange": "different films; pin both"}
    with pytest.raises(InputError, match=wanted[fault]) as error:
        load_ease(folder, load_lightgcn(world.lightgcn, SEED)["b"].catalogue)
    assert "\n" not in str(error.value)


def test_memory_is_stated_and_refused_in_one_line(caplog, monkeypatch):
    with caplog.at_level("INFO"):
        require_memory(1000)
    assert "1,000 films: 0.03 GiB of memory" in caplog.text
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**30})())
    with pytest.raises(
        InputError, match=r"20,000 films needs 10\.4 GiB.*1\.0 GiB are free; lower retrieve\.ease_max_fi"
    ):
        require_memory(20_000)


@pytest.mark.bytes
def test_two_threads_find_the_same_weights_as_one():
    # hardly any ridge: what the last bits of the inverse differ by shows in float32
    random = np.random.default_rng(3)
    likes_VM = sparse.csr_array((random.random((300, 600)) < 0.1).astype(float))
    before, weights = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            weights.append(solve(likes_VM, 1e-3).tobytes())
    finally:
        torch.set_num_threads(before)
    assert weights[0] == weights[1]


@pytest.mark.bytes
def test_two_threads_write_the_same_bytes_as_one(world, tmp_path):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fit_films(world, tmp_path / str(threads) / "ease")
            retrieve(world, tmp_path / str(threads) / "out", tmp_path / str(threads) / "ease")
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for path in sorted(path for path in (tmp_path / "1").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes()


def test_an_ad_hoc_viewer_gets_what_a_viewer_of_the_split_gets(world, fitted, out, rows):
    retriever = Retriever.load(
        *(world.knowledge, {**world.specialists, "ease": fitted}, DEFAULT),
        num_liked_triples=4,
        seed=SEED,
        fits=("b",),
    )
    question = read(out).filter(unseen=True, purpose="test").row(0, named=True)
    mine = rows.filter(user_id=question["user_id"]).filter(pl.col("position") < question["cutoff"])
    liked = mine.filter(pl.col("rating") >= 4)["movie_id"].to_list()[::-1]
    key = {"user_id": pl.Int32, "purpose": PURPOSES, "cutoff": pl.Int32, "movie_id": pl.Int32}
    asked = pl.DataFrame({"user_id": [-1], "purpose": ["test"], "unseen": [True], "cutoff": [0]})
    stranger = {"user_id": -1, "purpose": "test", "cutoff": 0}
    given = pl.DataFrame([{**stranger, "movie_id": film, "age": age} for age, film in enumerate(liked)])
    events = {"rating": 4.0, "timestamp": 0, "like": True}
    mask = pl.DataFrame([{**stranger, "movie_id": film, **events} for film in mine["movie_id"]])
    asked, given, mask = (
        frame.cast({name: dtype for name, dtype in key.items() if name in frame.columns})
        for frame in (asked, given, mask)
    )
    got = retriever.retrieve_users(asked, given, mask, pl.DataFrame(schema=key | {"rating": pl.Float32}))[0]
    assert got.select("candidates", "ranking").row(0) == (question["candidates"], question["ranking"])
