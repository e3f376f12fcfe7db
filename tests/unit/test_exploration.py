"""Exploration of a film's triples, and the probability of each choice."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
import small_world

from tripletune.config import RetrieveConfig
from tripletune.models.rgat.serve import load_rgat
from tripletune.models.serving.catalogue import Likes
from tripletune.retrieve.histories import find_answers, find_history, find_questions, find_seen
from tripletune.retrieve.retriever import Retriever
from tripletune.retrieve.triples import Exploration, TripleTable, choose_triples, read_triples

SEED, NUM_USERS = 7, 3000
FILMS = np.array([3, 6, 7, 60])
"""Three or four triples each (``nm9`` has no name), and one without any."""
LIKES = Likes(user_E=np.array([0, 0]), movie_E=np.array([12, 24]), age_E=np.array([0, 1]))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def fit(world):
    rgat = load_rgat(world.rgat, SEED)["a"]
    return rgat, TripleTable.build(rgat, read_triples(world.knowledge), SEED)


def choose(fit, mode="personal", share=None, num=1, cutoff=10):
    """The choices of all users for all films, with the film's id and the number of its triples."""
    rgat, table = fit
    user_P, movie_P = np.repeat(np.arange(NUM_USERS), len(FILMS)), np.tile(FILMS, NUM_USERS)
    exploration = None if share is None else Exploration(share, np.full(NUM_USERS, cutoff))
    chosen = choose_triples(
        table,
        rgat,
        LIKES,
        np.arange(NUM_USERS) + 1,
        user_P,
        movie_P,
        mode=mode,
        num=num,
        seed=SEED,
        exploration=exploration,
    )
    pair = chosen["pair"].to_numpy()
    counts = dict(zip(table.films.tolist(), np.diff(table.offsets).tolist(), strict=True))
    film = pl.Series(movie_P[pair])
    return chosen.with_columns(user=pl.Series(user_P[pair]), movie_id=film, triples=film.replace_strict(counts))


FACT = ["movie_id", "relation", "entity"]


@pytest.mark.parametrize(("mode", "share", "num"), [("personal", 0.3, 1), ("personal", 0.3, 2), ("random", None, 2)])
def test_a_propensity_is_the_frequency_with_which_a_fact_is_chosen(fit, mode, share, num):
    # users 1 and up have no likes, so that the best facts of a film are the same for all
    chosen = choose(fit, mode, share, num).filter(pl.col("user") > 0)
    facts = chosen.group_by(FACT).agg(pl.len(), pl.col("propensity").first(), n=pl.col("propensity").n_unique())
    assert facts["n"].to_list() == [1] * len(facts)
    found, told = facts["len"].to_numpy() / (NUM_USERS - 1), facts["propensity"].to_numpy()
    error = np.sqrt(told * (1 - told) / NUM_USERS)
    assert (np.abs(found - told) < 4 * error + 1e-9).all()
    assert facts.group_by("movie_id").agg(pl.col("propensity").sum())["propensity"].to_list() == pytest.approx(
        [num] * 3
    )


def test_without_exploration_each_choice_is_certain_and_none_changes(fit):
    plain, nothing_drawn = choose(fit), choose(fit, share=0.0)
    assert plain.equals(nothing_drawn)
    assert (plain["propensity"] == 1.0).all()


def test_with_another_cutoff_other_films_are_explored_and_as_many(fit):
    best = choose(fit)["entity"]
    first, second = (choose(fit, share=0.5, cutoff=cutoff)["entity"] != best for cutoff in (10, 11))
    assert not first.equals(second)
    assert first.mean() == pytest.approx(second.mean(), abs=0.03)


def test_a_stable_draw_depends_on_no_other_pair(fit):
    rgat, table = fit
    whole = choose(fit, share=0.5)
    for user, film in itertools.product((5, 77), (3, 6)):
        alone = choose_triples(
            table,
            rgat,
            LIKES,
            np.arange(NUM_USERS) + 1,
            np.array([user]),
            np.array([film]),
            mode="personal",
            num=1,
            seed=SEED,
            exploration=Exploration(0.5, np.full(NUM_USERS, 10)),
        )
        assert alone["entity"].to_list() == whole.filter(user=user, movie_id=film)["entity"].to_list()


def test_only_training_prompts_are_explored(world):
    rows = small_world.read_split(world)
    queries = find_questions(rows)
    parts = find_history(rows, queries), find_seen(rows, queries), find_answers(rows, queries)
    settings = RetrieveConfig(retriever="lightgcn", num_candidates=8, hint_films=5)
    choices = {}
    for share in (0.0, 0.6):
        asked = settings.model_copy(update={"explore_triples": share})
        retriever = Retriever.load(world.knowledge, world.specialists, asked, num_liked_triples=4, seed=SEED)
        choices[share] = retriever.retrieve_users(queries, *parts)[1]
    is_train = pl.col("purpose") == "train"
    plain, explored = choices[0.0], choices[0.6]
    assert plain.filter(~is_train).equals(explored.filter(~is_train))
    train = explored.filter(is_train)
    changed = (train["entity"] != plain.filter(is_train)["entity"]).mean()
    assert 0.25 < changed < 0.55
    assert (train["propensity"] < 1).mean() > 0.95
