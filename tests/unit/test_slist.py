"""SLIST: against regressions solved film by film, and as a retriever of a run."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import small_world
import torch
from safetensors.torch import load_file

from tripletune.config import RetrieveConfig, SlistConfig
from tripletune.errors import InputError
from tripletune.models.slist import fit as slist_fit
from tripletune.models.slist.fit import solve, train_slist
from tripletune.retrieve.candidates import retrieve_all
from tripletune.schemas.training import TRAINED_ON
from tripletune.threads import one_thread

SEED = 7
SETTINGS = SlistConfig(ridge=3.0, next_weight=2.0, next_age=1.5, popularity_power=0.3, history_age=4.0)
LABELS = {"a": ("graph",), "b": ("graph", "target")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rows(world):
    return small_world.read_split(world)


@pytest.fixture(scope="module")
def fitted(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    train_slist(world.split, folder, SETTINGS, SEED)
    return folder


def histories(num_users, num_films, seed=0):
    """Likes of users in a random order, 1 to 9 each; every film is liked."""
    random = np.random.default_rng(seed)
    found = [random.permutation(num_films)[: random.integers(1, 10)].tolist() for _ in range(num_users)]
    return [*found, list(range(num_films))]


def by_column(users, num_films, settings):
    """For each film one ridge regression on the other films, of two stacked problems: likes, and the next film."""
    likes, sources, targets = [], [], []
    for films in users:
        likes.append(np.isin(np.arange(num_films), films).astype(float))
        for place in range(1, len(films)):
            source = np.zeros(num_films)
            for before, film in enumerate(films[place - 1 :: -1] if place else []):
                source[film] = np.exp(-before / settings.next_age)
            sources.append(source)
            targets.append(np.eye(num_films)[films[place]])
    likes_VF, share = np.array(likes), np.sqrt(settings.next_weight)
    left = np.vstack([likes_VF, share * np.array(sources)])
    right = np.vstack([likes_VF, share * np.array(targets)])
    weights_FF = np.zeros((num_films, num_films))
    for film in range(num_films):
        others = np.delete(np.arange(num_films), film)
        stacked = np.vstack([left[:, others], np.sqrt(settings.ridge) * np.eye(len(others))])
        wanted = np.concatenate([right[:, film], np.zeros(len(others))])
        weights_FF[others, film] = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    return weights_FF / likes_VF.sum(axis=0) ** settings.popularity_power


def solved(users, num_films, settings):
    user_E = np.repeat(np.arange(len(users)), [len(films) for films in users])
    place_E = np.concatenate(users)
    return solve(user_E, place_E, np.bincount(place_E, minlength=num_films), settings)


@pytest.mark.parametrize("change", [{}, {"next_weight": 0.0}, {"next_age": 8.0}, {"popularity_power": 0.0}], ids=str)
def test_weights_are_those_of_one_regression_per_film(change):
    users, settings = histories(60, 15), SETTINGS.model_copy(update=change)
    # the pairs that LEAST_WEIGHT drops are 1e-6 of a like
    np.testing.assert_allclose(solved(users, 15, settings), by_column(users, 15, settings), atol=3e-6)


def test_weights_are_directed_from_the_older_film_to_the_newer():
    users = [[0, 1]] * 20 + [[2, 3, 4]] * 5
    directed = SETTINGS.model_copy(update={"popularity_power": 0.0})
    weights = solved(users, 5, directed)
    assert weights[0, 1] > weights[1, 0] > 0
    alike = solved(users, 5, directed.model_copy(update={"next_weight": 0.0}))
    assert alike[0, 1] == pytest.approx(alike[1, 0])


def test_blocks_of_pairs_and_rows_change_nothing(monkeypatch):
    users = histories(60, 15)
    before = solved(users, 15, SETTINGS)
    monkeypatch.setattr(slist_fit, "PAIRS", 7)
    monkeypatch.setattr(slist_fit, "ROWS", 4)
    np.testing.assert_allclose(solved(users, 15, SETTINGS), before, atol=1e-7)


def test_bytes_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(slist_fit, "ROWS", 16)
    users = histories(300, 70)
    found = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        four = solved(users, 70, SETTINGS)
    finally:
        torch.set_num_threads(found)
    with one_thread():
        one = solved(users, 70, SETTINGS)
    assert four.tobytes() == one.tobytes()


def test_fits_hold_the_likes_of_their_labels_and_the_audit_is_told_which(fitted, rows):
    trained = pl.read_parquet(fitted / "trained_on.parquet")
    assert trained.schema == TRAINED_ON
    for name, labels in LABELS.items():
        kept = rows.filter(pl.col("label").is_in(labels), ~pl.col("unseen"))
        told = trained.filter(pl.col("fit") == name)
        assert set(told.select("user_id", "movie_id").rows()) == set(kept.select("user_id", "movie_id").rows())
        ids = pl.read_parquet(fitted / "movies.parquet").filter(pl.col("fit") == name).sort("row")["movie_id"].to_list()
        users = [
            [ids.index(film) for film in own.sort("position")["movie_id"]]
            for _, own in kept.sort("user_id").group_by("user_id", maintain_order=True)
        ]
        stored = load_file(fitted / f"fit_{name}.safetensors")
        np.testing.assert_allclose(stored["weights"].numpy(), by_column(users, len(ids), SETTINGS), atol=3e-6)


def test_a_film_beyond_the_limit_is_in_no_pair(world, rows, tmp_path):
    facts = train_slist(world.split, tmp_path, SETTINGS.model_copy(update={"max_films": 20}), SEED)
    assert facts["films"] == {"a": 20, "b": 20}
    counts = (
        rows.filter(pl.col("label").is_in(LABELS["a"]), ~pl.col("unseen"))["movie_id"].value_counts()["count"].sort()
    )
    assert facts["likes"]["a"] == counts.tail(20).sum() < counts.sum()


def test_the_list_is_the_history_by_recency_times_the_weights(world, fitted, rows, tmp_path):
    settings = RetrieveConfig(
        retriever="fused",
        fused_lightgcn=1.0,
        fused_sequence=0.0,
        num_candidates=12,
        hint_films=6,
    )
    tmp_path = tmp_path / "retrieve"
    tmp_path.mkdir()
    folders = {**world.specialists, "slist": fitted}
    retrieve_all(world.split, world.knowledge, folders, tmp_path, settings, num_liked_triples=4, seed=SEED)
    rankings = pl.read_parquet(tmp_path / "rankings.parquet").filter(pl.col("retriever") == "slist")
    assert set(rankings["purpose"]) == {"valid", "test"}
    stored = load_file(fitted / "fit_b.safetensors")["weights"].double().numpy()
    films = pl.read_parquet(fitted / "movies.parquet").filter(pl.col("fit") == "b").sort("row")["movie_id"].to_numpy()
    for user, cutoff, top in rankings.select("user_id", "cutoff", "top").iter_rows():
        before = rows.filter(pl.col("user_id") == user, pl.col("position") < cutoff).sort("position")
        history = np.zeros(len(films))
        for newer, film in enumerate(before.filter(pl.col("label") != "other")["movie_id"].to_list()[::-1]):
            history[films == film] = np.exp(-newer / 4.0)
        scores = np.where(np.isin(films, before["movie_id"]), -np.inf, history @ stored)
        place = {film: row for row, film in enumerate(films)}
        of_list = scores[[place[film] for film in top]]
        np.testing.assert_allclose(of_list, np.sort(scores)[::-1][: len(top)], atol=1e-5)


def test_too_little_memory_is_one_line_before_the_fit(world, tmp_path, monkeypatch):
    monkeypatch.setattr(slist_fit, "BYTES_PER_WEIGHT", 1 << 60)
    with pytest.raises(InputError, match=r"SLIST on \d+ films.*lower slist\.max_films"):
        train_slist(world.split, tmp_path, SETTINGS, SEED)
