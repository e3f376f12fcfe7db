"""The synthetic release: layout, oddities, planted preferences, and that models can learn from it."""

from __future__ import annotations

import filecmp
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.unit.split_frames import split_ratings
from tripletune.config import IngestConfig, KnowledgeConfig, SplitConfig, SyntheticConfig
from tripletune.data.release.movielens import ingest_release
from tripletune.knowledge.build import write_knowledge
from tripletune.knowledge.imdb import read_credits
from tripletune.synthetic.release import write_release

SETTINGS = SyntheticConfig()


@dataclass(frozen=True)
class World:
    release: Path
    ingest: Path
    knowledge: Path
    facts: dict

    def read(self, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.ingest / f"{name}.parquet")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("synthetic")
    release, ingest, knowledge = (root / name for name in ("release", "ingest", "knowledge"))
    for folder in (release, ingest, knowledge):
        folder.mkdir()
    facts = write_release(release, SETTINGS, seed=3)
    facts |= ingest_release(release, ingest, IngestConfig())
    credits, credit_facts = read_credits(release / "imdb", pl.scan_parquet(ingest / "links.parquet"), KnowledgeConfig())
    paths = [ingest / f"{name}.parquet" for name in ("movies", "tags", "ratings")]
    facts |= credit_facts | write_knowledge(*paths, credits, [], knowledge, KnowledgeConfig())
    return World(release, ingest, knowledge, facts)


def carriers(world: World) -> pl.DataFrame:
    """Columns movie_id, key: entities of each film in the knowledge graph."""
    entities = pl.read_parquet(world.knowledge / "entities.parquet")
    triples = pl.read_parquet(world.knowledge / "triples.parquet")
    keys = entities.select("entity_id", "key")
    joined = triples.join(keys, left_on="head", right_on="entity_id").join(
        keys, left_on="tail", right_on="entity_id", suffix="_tail"
    )
    movie = pl.col("key").str.strip_prefix("movie:").cast(pl.Int32)
    return joined.select(movie_id=movie, key="key_tail").unique()


def test_the_release_is_ingested_without_a_reject(world):
    assert world.facts["rejected_by_reason"] == {}
    assert world.facts["viewers"] == SETTINGS.viewers
    assert world.facts["movies"] == SETTINGS.movies
    assert world.facts["rows_kept"] == world.facts["synthetic_ratings"]


def test_histories_are_long_enough_heavy_tailed_and_of_about_the_asked_mean(world):
    lengths = world.read("ratings").group_by("user_id").len()["len"]
    assert lengths.min() >= 20
    assert 0.75 * SETTINGS.mean_ratings < lengths.mean() < 1.25 * SETTINGS.mean_ratings
    assert lengths.max() > 3 * lengths.median()


def test_ids_start_above_zero_and_do_not_follow_popularity(world):
    ratings = world.read("ratings")
    counts = ratings.group_by("movie_id").len()
    assert ratings["user_id"].min() > 0
    assert ratings["movie_id"].min() > 0
    assert abs(counts.select(pl.corr("movie_id", "len", method="spearman")).item()) < 0.2


def test_stars_are_half_stars_and_many_ratings_share_a_second(world):
    ratings = world.read("ratings")
    assert set(ratings["rating"].unique()) == {half / 2 for half in range(1, 11)}
    shared = ratings.select(pl.struct("user_id", "timestamp").is_duplicated().mean()).item()
    assert 0.2 < shared < 0.8
    assert ratings["timestamp"].is_between(946_684_800, 2_000_000_000).all()


def test_the_oddities_of_real_data_are_there(world):
    titles = world.read("movies")["title"]
    tags = world.read("tags")
    assert "Evil <|eot_id|> (1999)" in titles.to_list()
    assert titles.is_duplicated().sum() >= 2
    assert titles.str.contains('"').any()
    assert world.read("movies")["year"].null_count() == 1
    assert (world.read("movies")["genres"].list.len() == 0).sum() == 1
    assert tags.filter(pl.col("tag").str.contains("\nassistant:"))["user_id"].n_unique() >= 3
    assert world.facts["films_without_credits"] == 1
    assert world.facts["credit_people_without_name"] == 1


def test_the_truth_names_entities_of_the_graph_that_have_a_name(world):
    truth = pl.read_parquet(world.release / "truth.parquet")
    entities = pl.read_parquet(world.knowledge / "entities.parquet").drop_nulls("name")
    planted = truth.filter(pl.col("kind") != "none")
    assert truth.height == SETTINGS.viewers
    assert set(planted["key"]) <= set(entities["key"])
    assert planted["strength"].unique().to_list() == [SETTINGS.preference_strength]
    assert truth.filter(pl.col("kind") == "none").select(pl.col("key").is_null().all()).item()
    assert set(truth["kind"]) == {"director", "cinematographer", "writer", "actor", "genre", "decade", "none"}


@pytest.mark.parametrize("kind", ["director", "cinematographer", "writer", "actor", "genre", "decade"])
def test_viewers_watch_and_like_the_films_of_their_planted_entity_more(world, kind):
    truth = pl.read_parquet(world.release / "truth.parquet").filter(pl.col("kind") == kind)
    mine = truth.join(carriers(world), on="key").select("user_id", "movie_id", mine=pl.lit(True))
    ratings = (
        world.read("ratings").join(truth.select("user_id"), on="user_id").with_columns(like=pl.col("rating") >= 4.0)
    )
    joined = ratings.join(mine, on=["user_id", "movie_id"], how="left").with_columns(pl.col("mine").fill_null(False))
    liked = dict(joined.group_by("mine").agg(pl.col("like").mean()).iter_rows())
    num_mine, num_other = mine.height, truth.height * SETTINGS.movies - mine.height
    watched_mine, watched_other = joined["mine"].sum() / num_mine, (~joined["mine"]).sum() / num_other
    assert watched_mine > 2 * watched_other
    assert liked[True] > liked[False] + 0.2  # 2.5 log-odds take one half to 0.92


def test_films_of_the_planted_entity_are_spread_over_a_viewer_s_history(world):
    truth = pl.read_parquet(world.release / "truth.parquet").drop_nulls("key")
    mine = truth.join(carriers(world), on="key").select("user_id", "movie_id")
    place = (pl.int_range(pl.len()).over("user_id") + 0.5) / pl.len().over("user_id")
    ratings = world.read("ratings").sort("user_id", "timestamp").with_columns(place=place)
    # a fan's films run out: the middle lies before that of the history, but films come in every part
    found = ratings.join(mine, on=["user_id", "movie_id"])["place"]
    assert 0.4 < found.mean() < 0.5
    assert (found > 0.75).mean() > 0.15


@pytest.mark.bytes
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    small = SyntheticConfig(viewers=40, movies=60, mean_ratings=22)
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        write_release(folder, small, seed)
    names = [path.relative_to(folders[0]).as_posix() for path in folders[0].rglob("*.*") if path.is_file()]
    assert len(names) == 13
    assert filecmp.cmpfiles(folders[0], folders[1], names, shallow=False)[0] == names
    for path in (folders[0] / "imdb").iterdir():
        assert path.read_bytes()[4:8] == bytes(4)  # the time stamp in a gzip header
    assert not filecmp.cmp(folders[0] / "ratings.csv", folders[2] / "ratings.csv", shallow=False)


@pytest.mark.parametrize(("viewers", "movies", "mean"), [(1, 50, 20), (3, 50, 500), (1100, 50, 20)])
def test_the_smallest_worlds_can_be_written(tmp_path, viewers, movies, mean):
    facts = write_release(tmp_path, SyntheticConfig(viewers=viewers, movies=movies, mean_ratings=mean), 0)
    assert facts["synthetic_viewers"] == viewers
    assert 20 * viewers <= facts["synthetic_ratings"] <= 30 * viewers


def test_five_hundred_viewers_are_written_in_well_under_two_seconds(tmp_path):
    start = time.process_time()
    write_release(tmp_path, SETTINGS, 0)
    assert time.process_time() - start < 2.0


def test_popularity_is_a_fair_baseline_and_a_collaborative_model_beats_it(world):
    split = split_ratings(pl.read_parquet(world.ingest / "ratings.parquet"), SplitConfig(), 0)
    users, movies = (split[name].unique().sort().to_list() for name in ("user_id", "movie_id"))
    row, column = (
        split[name].replace_strict(values, range(len(values)), return_dtype=pl.Int64).to_numpy()
        for name, values in (("user_id", users), ("movie_id", movies))
    )
    label = split["label"].cast(pl.String).to_numpy()
    past = label != "test"
    liked_UM = np.zeros((len(users), len(movies)))
    known = past & (label != "other")
    liked_UM[row[known], column[known]] = 1.0
    rated_UM = np.zeros_like(liked_UM, dtype=bool)
    rated_UM[row[past], column[past]] = True

    def hit_rate(scores_UM: np.ndarray) -> float:
        masked_UM = np.where(rated_UM, -np.inf, scores_UM)
        answer = label == "test"
        place = (masked_UM[row[answer]] > masked_UM[row[answer], column[answer]][:, None]).sum(1)
        return float((place < 10).mean())

    gram_MM = np.linalg.inv(liked_UM.T @ liked_UM + 200.0 * np.eye(len(movies)))  # EASE (Steck, WWW 2019)
    ease_MM = -gram_MM / np.diag(gram_MM)
    np.fill_diagonal(ease_MM, 0.0)
    popularity = hit_rate(np.broadcast_to(liked_UM.sum(0), liked_UM.shape))
    ease = hit_rate(liked_UM @ ease_MM)
    assert popularity > 3 * 10 / len(movies)
    assert ease > 1.3 * popularity
