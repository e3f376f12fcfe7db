"""Features of the learned choice, against a loop over users, films and triples."""

from __future__ import annotations

import numpy as np
import pytest
import small_world

from tripletune.errors import InputError
from tripletune.models.rgat.serve import load_rgat
from tripletune.models.serving.catalogue import Likes
from tripletune.retrieve.histories import read_fit_likes
from tripletune.retrieve.learned import NAME, Selector, read_weights
from tripletune.retrieve.profiles import RelationTable, build_profiles
from tripletune.retrieve.triple_features import FEATURES, TripleFeatures
from tripletune.retrieve.triples import TripleTable, choose_triples, read_triples
from tripletune.store.files import write_json

SEED = 7
LIKES = Likes(
    user_E=np.array([0, 0, 0, 0, 1, 1]), movie_E=np.array([12, 24, 7, 60, 3, 50]), age_E=np.array([0, 1, 2, 3, 0, 1])
)
"""Film 60 has no triple; user 2 likes nothing."""
USER_P, MOVIE_P = np.repeat(np.arange(3), 59), np.tile(np.arange(1, 60), 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def features(world):
    rgat = load_rgat(world.rgat, SEED)["a"]
    table = TripleTable.build(rgat, read_triples(world.knowledge), SEED)
    likes = read_fit_likes(world.lightgcn, "a")
    return TripleFeatures.build(table, rgat, RelationTable.build(table, rgat), likes)


def naive(world, features, user, movie, relation, entity):
    """The features of one row by their definitions."""
    facts = read_triples(world.knowledge)
    rgat = features.rgat
    alpha = {
        (m, r, e): np.float64(np.float32(a))
        for m, r, e, a in rgat.attention.select("movie_id", "relation", "entity", "alpha").iter_rows()
    }
    row = dict(rgat.entity_rows.select("entity", "row").iter_rows())
    user_D = rgat.pool(LIKES, 3)[user].double().numpy()

    def match(key):
        return rgat.beta * float(user_D @ rgat.entity_vectors_ND[row[key]].double().numpy()) / np.sqrt(len(user_D))

    mine = facts.filter(movie_id=movie).select("relation", "entity").rows()
    power = {one: alpha[movie, *one] * np.exp(match(one[1])) for one in mine}
    posterior = power[relation, entity] / sum(power.values())
    carrying = set(facts.filter(entity=entity)["movie_id"])
    fit_likes = read_fit_likes(world.lightgcn, "a")["movie_id"].to_list()
    liked = [film for of_user, film in zip(LIKES.user_E, LIKES.movie_E, strict=True) if of_user == user]
    others = [film for film in liked if film != movie]
    shared = len([film for film in others if film in carrying])
    profiles = build_profiles(features.relations, rgat, LIKES, 3).filter(viewer=user, relation=relation)
    mass, attention = profiles.select("mass", "attention").row(0) if len(profiles) else (0.0, 0.0)
    share, is_like = shared / max(1, len(others)), movie in liked
    return {
        "log attention": np.log(alpha[movie, relation, entity]),
        "match": match(entity),
        "log posterior": np.log(posterior),
        "posterior": posterior,
        "posterior of a like": posterior * is_like,
        "films with it": np.log1p(len(carrying)),
        "likes of these": np.log1p(sum(film in carrying for film in fit_likes)),
        "shared likes": np.log1p(shared),
        "share of likes": share,
        "share of likes of a like": share * is_like,
        "profile mass": mass,
        "profile above attention": mass - attention,
    }


def test_features_are_those_of_a_loop(world, features):
    pair_T, triple_T = features.table.expand(MOVIE_P)
    found_TF = features.matrix(LIKES, 3, USER_P, MOVIE_P, pair_T, triple_T)
    text = features.table.text.select("relation", "entity").rows()
    assert features.names[: len(FEATURES)] == FEATURES
    liked = set(zip(LIKES.user_E.tolist(), LIKES.movie_E.tolist(), strict=True))
    rows = [row for row, pair in enumerate(pair_T) if (USER_P[pair], MOVIE_P[pair]) in liked]
    assert len(rows) > 12
    for row in [*rows, *range(0, len(pair_T), 61)]:
        pair, (relation, entity) = pair_T[row], text[triple_T[row]]
        want = naive(world, features, int(USER_P[pair]), int(MOVIE_P[pair]), relation, entity)
        got = dict(zip(features.names, found_TF[row], strict=True))
        assert got.pop(f"relation {relation}") == 1.0
        assert got == pytest.approx(
            want | {name: 0.0 for name in got if name.startswith("relation ")}, rel=1e-5, abs=1e-7
        )


def test_weights_of_attention_and_match_choose_as_the_personal_mode(features):
    weights = dict.fromkeys(FEATURES, 0.0) | {"log attention": 1.0, "match": 1.0}
    chosen = [
        choose_triples(
            features.table,
            features.rgat,
            LIKES,
            np.arange(3) + 1,
            USER_P,
            MOVIE_P,
            mode=mode,
            num=2,
            seed=SEED,
            scorer=Selector(features, weights),
        )
        for mode in ("personal", "learned")
    ]
    assert len(chosen[0]) > 300
    assert chosen[0].drop("score").equals(chosen[1].drop("score"))


def test_a_relation_without_a_weight_counts_as_none(features):
    weights = dict.fromkeys(FEATURES, 0.0) | {"relation actor": 2.0, "relation unheard": 9.0}
    pair_T, triple_T = features.table.expand(MOVIE_P)
    score_T = Selector(features, weights).score(LIKES, 3, USER_P, MOVIE_P, pair_T, triple_T)
    is_actor_T = (features.table.text["relation"] == "actor").to_numpy()[triple_T]
    assert (score_T == 2.0 * is_actor_T).all()


def test_weights_are_read_and_a_refused_choice_has_none(tmp_path):
    weights = dict.fromkeys(FEATURES, 0.5)
    write_json(tmp_path / NAME, {"refused": "", "weights": weights})
    assert read_weights(tmp_path) == weights
    write_json(tmp_path / NAME, {"refused": "it collapsed", "weights": weights})
    assert read_weights(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weights": {}}, "must hold 'refused' and 'weights'"),
        ({"refused": "", "weights": {"match": 1.0}}, "no finite weight of 'log attention'"),
        ({"refused": "", "weights": dict.fromkeys(FEATURES, float("nan"))}, "no finite weight of 'log attention'"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content, words):
    write_json(tmp_path / NAME, content)
    with pytest.raises(InputError, match=words):
        read_weights(tmp_path)
