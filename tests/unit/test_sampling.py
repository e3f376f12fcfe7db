"""Selection of users for training queries: probabilities worked out by hand, clusters against scipy, and inputs that
must not change the choice."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import polars as pl
import pytest
import small_world
import torch
from pydantic import ValidationError
from scipy.cluster.vq import kmeans2

from tripletune.config import RetrieveConfig, SampleConfig
from tripletune.retrieve import sampling
from tripletune.retrieve.candidates import retrieve_all
from tripletune.retrieve.clusters import cluster_users
from tripletune.retrieve.sampling import draw_users, keep_drawn, sample_facts, sample_users
from tripletune.schemas.query import PURPOSES
from tripletune.schemas.retrieve import SAMPLE

USERS = np.array([3, 14, 15, 92])
LIKES = np.array([3, 8, 30, 200])
TRIALS = 4000


def one_by_one(weights, num, penalty, drawn=None, probability=1.0, into=None):
    """Probability of each outcome (draws per user) of ``num`` draws, each with weight times penalty ** drawn."""
    into = Counter() if into is None else into
    drawn = drawn or (0,) * len(weights)
    now = [w * penalty**n for w, n in zip(weights, drawn, strict=True)]
    if not num or not sum(now):
        into[drawn] += probability
        return into
    for viewer, weight in enumerate(now):
        if weight:
            after = tuple(n + (v == viewer) for v, n in enumerate(drawn))
            one_by_one(weights, num - 1, penalty, after, probability * weight / sum(now), into)
    return into


def expected_draws(outcomes):
    return sum(probability * np.array(drawn) for drawn, probability in outcomes.items())


def mean_draws(settings, clusters=None):
    return sum(draw_users(USERS, LIKES, clusters, settings, seed) for seed in range(TRIALS)) / TRIALS


@pytest.mark.parametrize("penalty", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("method", ["uniform", "importance"])
def test_viewers_are_drawn_as_often_as_one_by_one_with_weight_ln_likes_and_the_penalty(method, penalty):
    weights = np.log(LIKES) if method == "importance" else np.ones(4)
    want = expected_draws(one_by_one(weights, 3, penalty))
    got = mean_draws(SampleConfig(method=method, viewers=3, penalty=penalty))
    assert got == pytest.approx(want, abs=5 * 0.9 / np.sqrt(TRIALS))  # no draw count has a deviation above .9
    assert got.sum() == pytest.approx(3)


def test_the_second_half_of_recranker_avoids_who_is_in_the_first():
    clusters, penalty = np.array([0, 0, 1, 1]), 0.4
    want = np.zeros(4)
    for first, probability in one_by_one(np.log(LIKES), 2, penalty).items():
        halves = [
            one_by_one([penalty ** first[a], penalty ** first[b]], 1, penalty) for a, b in ((0, 1), (2, 3))
        ]  # two draws, one from each cluster
        for (left, p), (right, q) in product(halves[0].items(), halves[1].items()):
            want += probability * p * q * (np.array(first) + np.array(left + right))
    got = mean_draws(SampleConfig(method="recranker", viewers=4, clusters=2, penalty=penalty), clusters)
    assert got == pytest.approx(want, abs=5 * 0.9 / np.sqrt(TRIALS))


def test_each_cluster_gives_the_same_number_and_a_small_one_all_it_has():
    users = np.arange(100)
    clusters = np.repeat([0, 1, 2, 3], [3, 10, 27, 60])
    draws = draw_users(users, users + 2, clusters, SampleConfig(method="clusters", viewers=40, clusters=5), 1)
    assert np.bincount(clusters, weights=draws).tolist() == [3, 10, 14, 13]
    assert draws.max() == 1
    repeated = draw_users(
        users, users + 2, clusters, SampleConfig(method="clusters", viewers=40, clusters=5, penalty=0.9), 1
    )
    assert np.bincount(clusters, weights=repeated).tolist() == [10, 10, 10, 10]


def test_without_repetition_recranker_draws_nobody_twice_and_as_many_as_asked():
    users = np.arange(300)
    clusters = users % 7
    draws = draw_users(users, users + 2, clusters, SampleConfig(method="recranker", viewers=100, clusters=7), 1)
    assert (draws.sum(), draws.max()) == (100, 1)


@pytest.mark.parametrize("method", ["uniform", "importance", "clusters", "recranker"])
def test_more_draws_than_viewers_take_everybody_once(method):
    settings = SampleConfig(method=method, viewers=50, clusters=2)
    assert draw_users(USERS, LIKES, np.array([0, 0, 0, 1]), settings, 1).tolist() == [1, 1, 1, 1]


def test_a_viewer_more_displaces_one_at_most_and_the_order_of_viewers_nobody():
    users, likes = np.arange(2000), np.arange(2000) % 97 + 2
    settings = SampleConfig(method="importance", viewers=300)
    drawn = set(users[draw_users(users, likes, None, settings, 5) > 0])
    fewer = set(users[:-1][draw_users(users[:-1], likes[:-1], None, settings, 5) > 0])
    assert len(drawn) == len(fewer) == 300
    assert len(drawn - fewer) <= 1
    shuffle = np.random.default_rng(1).permutation(2000)
    again = draw_users(users[shuffle], likes[shuffle], None, settings, 5)
    assert set(users[shuffle][again > 0]) == drawn
    assert drawn != set(users[draw_users(users, likes, None, settings, 6) > 0])


def blobs(num=400):
    random = np.random.default_rng(2)
    middles = random.normal(size=(5, 8)) * 4
    return torch.from_numpy(middles[random.integers(5, size=num)] + random.normal(size=(num, 8)) * 1.5).float()


def test_clusters_are_those_of_scipy_from_the_same_beginnings():
    points, users = blobs(), np.arange(400) * 3
    first = cluster_users(points, users, 6, seed=4)
    means = np.stack([points[torch.from_numpy(first == k)].double().numpy().mean(axis=0) for k in range(6)])
    _, want = kmeans2(points.double().numpy(), means, minit="matrix", iter=50)
    assert first.tolist() == want.tolist()  # a fixed point of Lloyd's rounds
    ends = [cluster_users(points, users, 5, seed) for seed in range(12)]
    spread = min(sum(points[k == c].var(0, False).sum() * (k == c).sum() for c in range(5)) for k in ends)
    _, best = kmeans2(points.double().numpy(), 5, minit="++", iter=50, rng=1)
    assert spread <= 1.05 * sum(points[best == c].var(0, False).sum() * (best == c).sum() for c in range(5))


def test_beginnings_are_drawn_by_squared_distance():
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.2, 0.0], [1.2, 1.0]])
    # beginnings one above the other end in an upper and a lower pair, all others in a left and a right one
    found = Counter(tuple(cluster_users(corners, np.arange(4), 2, seed)) for seed in range(1500))
    level = found[0, 1, 0, 1] + found[1, 0, 1, 0]
    assert level + found[0, 0, 1, 1] + found[1, 1, 0, 0] == 1500
    assert level / 1500 == pytest.approx(1 / (1 + 1.44 + 2.44), abs=5 * 0.41 / np.sqrt(1500))


def test_fewer_different_vectors_than_clusters_leave_clusters_empty():
    assert cluster_users(torch.ones(5, 3), np.arange(5), 3, seed=1).tolist() == [0] * 5


def retrieve(world, out, sample, **changes):
    out.mkdir()
    return retrieve_all(
        world.split,
        world.knowledge,
        world.specialists,
        out,
        RetrieveConfig(retriever="lightgcn", **changes),
        num_liked_triples=4,
        seed=small_world.SEED,
        sample=sample,
    )


def read(folder):
    return pl.concat(pl.read_parquet(path) for path in sorted(folder.glob("shard-*.parquet"))).sort(
        "user_id", "purpose"
    )


@pytest.fixture(scope="module")
def everybody(tmp_path_factory):
    folder = tmp_path_factory.mktemp("everybody")
    world = small_world.make_world(folder)
    retrieve(world, folder / "all", SampleConfig())
    return read(folder / "all" / "retrieved")


@pytest.mark.parametrize("method", ["importance", "clusters"])
def test_training_is_asked_of_the_drawn_alone_and_every_answer_stays_as_it_was(tmp_path, everybody, method):
    world = small_world.make_world(tmp_path)
    facts = retrieve(world, tmp_path / "out", SampleConfig(method=method, viewers=9, clusters=3))
    sample = pl.read_parquet(tmp_path / "out" / "sample.parquet")
    assert sample.schema == SAMPLE
    assert sample["user_id"].to_list() == everybody.filter(purpose="train")["user_id"].to_list()
    drawn = sample.filter(pl.col("draws") > 0)["user_id"]
    is_asked = (pl.col("purpose") != "train") | pl.col("user_id").is_in(drawn.implode())
    assert read(tmp_path / "out" / "retrieved").equals(everybody.filter(is_asked))
    rows = small_world.read_split(world).filter(label="graph")
    assert sample["likes"].to_list() == [rows.filter(user_id=user).height for user in sample["user_id"]]
    told = facts["sample"]
    assert (told["draws"], told["viewers"], told["of"]) == (9, 9, len(sample))
    by = "by_cluster" if method == "clusters" else "by_decile"
    assert sum(count["drawn"] for count in told[by].values()) == 9
    assert sum(count["of"] for count in told[by].values()) == len(sample)
    if method == "clusters":
        assert sorted(count["drawn"] for count in told[by].values()) == [3, 3, 3]


def test_a_viewer_drawn_twice_keeps_the_two_newest_cutoffs():
    asked = [(1, "train", 3), (1, "train", 5), (1, "train", 9), (1, "valid", 12), (2, "train", 4), (3, "train", 4)]
    asked += [(3, "test", 8), (4, "test", 8)]
    schema = {"user_id": pl.Int32, "purpose": PURPOSES, "cutoff": pl.Int32}
    sample = pl.DataFrame({"user_id": [1, 2, 3], "draws": [2, 1, 0]}, schema_overrides=SAMPLE)
    kept = keep_drawn(pl.DataFrame(asked, schema=schema, orient="row"), sample)
    assert kept.rows() == [asked[number] for number in (1, 2, 3, 4, 6, 7)]


def test_draws_say_at_how_many_cutoffs_a_viewer_is_asked(tmp_path):
    world = small_world.make_world(tmp_path)
    retrieve(world, tmp_path / "all", SampleConfig(), train_cutoffs=3)
    retrieve(world, tmp_path / "some", SampleConfig(method="uniform", viewers=60, penalty=0.9), train_cutoffs=3)
    every, some = (read(tmp_path / name / "retrieved").filter(purpose="train") for name in ("all", "some"))
    cutoffs = dict(every.group_by("user_id").agg(pl.col("cutoff").sort(descending=True)).iter_rows())
    draws = dict(pl.read_parquet(tmp_path / "some" / "sample.parquet").select("user_id", "draws").iter_rows())
    assert {0, 1, 2, 3} <= set(draws.values())
    want = {(user, cutoff) for user, newest in cutoffs.items() for cutoff in newest[: draws[user]]}
    assert set(some.select("user_id", "cutoff").rows()) == want


@pytest.mark.bytes
def test_the_sample_is_the_same_whatever_the_order_of_rows_and_the_number_of_shards(tmp_path):
    worlds = [small_world.make_world(tmp_path / name) for name in ("one", "two")]
    rows = small_world.read_split(worlds[1]).sample(fraction=1.0, shuffle=True, seed=3)
    for shard in range(2, 5):
        (worlds[1].split / f"shard={shard:03d}").mkdir()
    for shard in range(5):
        part = rows.filter(pl.col("user_id") % 5 == shard)
        part.write_parquet(worlds[1].split / f"shard={shard:03d}" / "part.parquet")
    settings = SampleConfig(method="recranker", viewers=10, clusters=3, penalty=0.5)
    for world in worlds:
        retrieve(world, world.root / "out", settings)
    assert len({(world.root / "out" / "sample.parquet").read_bytes() for world in worlds}) == 1


@pytest.mark.parametrize("settings", [{"method": "uniform"}, {"viewers": 5}])
def test_a_method_and_a_number_go_together(settings):
    with pytest.raises(ValidationError, match=r"does not go with method"):
        SampleConfig(**settings)


@pytest.mark.parametrize("penalty", [0.25, 0.8])
def test_each_outcome_is_as_likely_as_in_draws_one_by_one(penalty):
    users, likes = USERS[:3], LIKES[:3]
    settings = SampleConfig(method="importance", viewers=3, penalty=penalty)
    found = Counter(tuple(draw_users(users, likes, None, settings, seed).tolist()) for seed in range(TRIALS))
    want = one_by_one(np.log(likes), 3, penalty)
    assert found.keys() <= want.keys()
    for outcome, probability in want.items():
        deviation = np.sqrt(probability * (1 - probability) / TRIALS)
        assert found[outcome] / TRIALS == pytest.approx(probability, abs=5 * deviation), outcome


def test_importance_never_draws_who_has_one_like_or_none():
    settings = SampleConfig(method="importance", viewers=5, penalty=0.5)
    with np.errstate(all="raise"):
        draws = draw_users(np.arange(4), np.array([0, 1, 2, 9]), None, settings, 1)
    assert draws[:2].tolist() == [0, 0]
    assert draws.sum() == 5


def test_the_parts_of_a_sample_are_drawn_with_different_seeds():
    assert len({sampling._IMPORTANCE, sampling._CLUSTERS, sampling._CENTRES}) == 3


class PoolOfThree:
    """Vectors of three users, and what they were asked to be pooled from. By direction the first two are alike, by
    distance the last two."""

    def __init__(self):
        self.likes = None

    def pool(self, likes, num_viewers):
        assert num_viewers == 3
        self.likes = sorted(zip(likes.user_E.tolist(), likes.movie_E.tolist(), likes.age_E.tolist(), strict=True))
        return torch.tensor([[10.0, 0.0], [0.1, 0.0], [0.0, 0.1]])


def rows_of_five_users():
    """Three users have a target like; of the others one has graph likes alone and one is unseen."""
    rows = [(20, 7, 0, "graph", False), (20, 8, 1, "graph", False), (20, 9, 2, "graph", False)]
    rows += [(20, 1, 3, "target", False), (20, 2, 4, "later", False)]
    rows += [(10, 1, 0, "graph", False), (10, 6, 1, "other", False), (10, 2, 2, "graph", False)]
    rows += [(10, 3, 3, "target", False), (10, 4, 4, "target", False), (10, 5, 5, "valid", False)]
    rows += [(11, 4, 0, "graph", False), (11, 5, 1, "target", False)]
    rows += [(12, 1, 0, "graph", False), (12, 2, 1, "valid", False), (12, 3, 2, "test", False)]
    rows += [(13, 1, 0, "graph", True), (13, 2, 1, "target", True)]
    schema = {"user_id": pl.Int32, "movie_id": pl.Int32, "position": pl.Int32, "label": pl.String, "unseen": pl.Boolean}
    return pl.LazyFrame(rows, schema=schema, orient="row")


@pytest.mark.parametrize("method", ["clusters", "recranker"])
def test_users_are_clustered_by_the_direction_of_the_vector_of_their_graph_likes(method):
    fit = PoolOfThree()
    sample = sample_users(rows_of_five_users(), fit, SampleConfig(method=method, viewers=3, clusters=2), seed=1)
    assert fit.likes == [(0, 1, 1), (0, 2, 0), (1, 4, 0), (2, 7, 2), (2, 8, 1), (2, 9, 0)]  # the newest has age 0
    assert sample.select("user_id", "likes").rows() == [(10, 2), (11, 1), (20, 3)]
    first, second, third = sample["cluster"]
    assert {first, third} == {0, 1}
    assert second == first


@pytest.mark.parametrize("method", ["uniform", "importance"])
def test_without_clusters_users_are_not_pooled_and_deciles_count_who_has_fewer_likes(method):
    fit = PoolOfThree()
    sample = sample_users(rows_of_five_users(), fit, SampleConfig(method=method, viewers=2), seed=1)
    assert fit.likes is None
    assert sample.schema == SAMPLE
    # 1, 0 and 2 of three users have fewer
    assert sample.select("user_id", "likes", "decile", "cluster").rows() == [
        (10, 2, 3, None),
        (11, 1, 0, None),
        (20, 3, 6, None),
    ]
    assert sample["draws"].sum() == 2


@pytest.mark.parametrize("method", ["uniform", "importance", "clusters", "recranker"])
def test_nobody_with_a_target_like_gives_an_empty_sample(method):
    rows = rows_of_five_users().filter(pl.col("label") != "target")
    sample = sample_users(rows, PoolOfThree(), SampleConfig(method=method, viewers=2, clusters=2), seed=1)
    assert (sample.height, sample.schema) == (0, SAMPLE)


def test_facts_count_draws_users_and_the_drawn_of_each_part():
    rows = [(1, 5, 0, 1, 2), (2, 6, 0, 0, 0), (3, 7, 5, 1, 1), (4, 9, 9, 1, 0)]
    sample = pl.DataFrame(rows, schema=SAMPLE, orient="row")
    assert sample_facts(sample, "clusters") == {
        "method": "clusters",
        "draws": 3,
        "viewers": 2,
        "of": 4,
        "by_decile": {"0": {"drawn": 1, "of": 2}, "5": {"drawn": 1, "of": 1}, "9": {"drawn": 0, "of": 1}},
        "by_cluster": {"0": {"drawn": 0, "of": 1}, "1": {"drawn": 2, "of": 3}},
    }
    without = sample.with_columns(cluster=pl.lit(None, dtype=pl.Int16))
    assert sample_facts(without, "uniform")["by_cluster"] == {}
