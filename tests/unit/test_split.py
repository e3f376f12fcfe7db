"""leave_one_out against a slow reference, time order, and contents of the shards."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest

from tests.unit.split_frames import split_ratings
from tripletune.config import SplitConfig
from tripletune.data.split.write import write_split
from tripletune.errors import InputError
from tripletune.schemas.ingest import RATINGS
from tripletune.schemas.split import SPLIT, STARTS
from tripletune.stable_hash import mix, pair_hash


def random_ratings(seed: int, viewers: int = 120) -> pl.DataFrame:
    """Histories of 1 to 40 films, with few distinct seconds, so that most times tie."""
    rng = np.random.default_rng(seed)
    rows = [
        (user, int(movie), float(rng.integers(1, 11)) / 2, int(rng.integers(0, 6)))
        for user in range(3, 3 + viewers)
        for movie in rng.choice(300, size=rng.integers(1, 41), replace=False)
    ]
    return pl.DataFrame(rows, schema=RATINGS, orient="row")


def reference(ratings: pl.DataFrame, settings: SplitConfig, seed: int) -> list[tuple]:
    """The rules of the design, one user at a time."""
    histories = defaultdict(list)
    for user, movie, rating, time in ratings.iter_rows():
        histories[user].append((time, int(pair_hash([user], [movie], seed)[0]), movie, rating))
    rows = []
    for user, history in sorted(histories.items()):
        history.sort()
        likes = [place for place, row in enumerate(history) if row[3] >= settings.like]
        labels = dict.fromkeys(likes, "graph")
        if len(likes) >= settings.min_graph + 2:
            *before, valid, test = likes
            labels |= {test: "test", valid: "valid"}
            num_target = min(settings.max_target, len(before) - settings.min_graph)
            labels |= dict.fromkeys(before[len(before) - num_target :], "target")
        unseen = int(mix([user], seed)[0]) / 2**64 < settings.unseen_share
        for place, (time, _, movie, rating) in enumerate(history):
            rows.append((user, movie, rating, time, place, labels.get(place, "other"), unseen))
    return rows


@pytest.mark.parametrize(
    "settings",
    [
        SplitConfig(),
        SplitConfig(min_graph=1, max_target=1, unseen_share=0.5),
        SplitConfig(like=3.5, min_graph=5, max_target=12, unseen_share=0.0),
    ],
    ids=["default", "smallest", "large"],
)
@pytest.mark.parametrize("seed", [0, 11])
def test_split_matches_the_rules_applied_one_viewer_at_a_time(settings, seed):
    ratings = random_ratings(seed)
    got = split_ratings(ratings, settings, seed)
    assert got.schema == SPLIT
    assert got.rows() == reference(ratings, settings, seed)


def test_row_order_does_not_change_the_split():
    ratings = random_ratings(1)
    shuffled = ratings.sample(fraction=1.0, shuffle=True, seed=5)
    settings = SplitConfig()
    assert split_ratings(shuffled, settings, 0).equals(split_ratings(ratings, settings, 0))


def test_ratings_given_later_leave_the_order_of_the_earlier_ones_alone():
    ratings = random_ratings(2)
    later = ratings.filter(pl.col("movie_id") % 3 == 0).with_columns(
        pl.col("movie_id") + 1000, timestamp=pl.col("timestamp") + 6
    )
    columns = ["user_id", "movie_id", "position", "unseen"]
    before = split_ratings(ratings, SplitConfig(), 0).select(columns)
    after = split_ratings(pl.concat([ratings, later.cast(dict(RATINGS))]), SplitConfig(), 0).select(columns)
    assert after.filter(pl.col("movie_id") < 1000).equals(before)


def test_ties_are_in_the_order_of_all_64_bits_of_the_hash_however_few_fit_beside_the_time():
    # a user with 3,000 ratings of one second, and one whose times need 51 bits: 11 bits remain for the hash
    rows = [(1, movie, 5.0, 7) for movie in range(3000)] + [
        (2, movie, 5.0, 2**50 - movie * 2**45) for movie in range(20)
    ]
    rows.append((3, 1, 5.0, 0))
    got = split_ratings(pl.DataFrame(rows, schema=RATINGS, orient="row"), SplitConfig(), 3)
    want = sorted(range(3000), key=lambda movie: int(pair_hash([1], [movie], 3)[0]))
    assert got["movie_id"].to_list() == [*want, *reversed(range(20)), 1]


def test_ties_are_in_the_order_of_movie_ids_where_published_numbers_ask_for_it():
    ratings = random_ratings(6)
    big = ratings.with_columns(pl.col("movie_id") + (2**31 - 1 - 300))
    for given in (ratings, big):
        got = split_ratings(given, SplitConfig(tie_order="movie_id"), 0)
        assert got.select("user_id", "movie_id").equals(
            given.sort("user_id", "timestamp", "movie_id").select("user_id", "movie_id")
        )


def test_ties_are_in_the_order_of_the_file_where_published_numbers_ask_for_it():
    ratings = random_ratings(6)
    rows = np.random.default_rng(2).permutation(len(ratings)) + 2**31
    ratings = ratings.with_columns(row=pl.Series(rows, dtype=pl.UInt32))
    got = split_ratings(ratings, SplitConfig(tie_order="file"), 0)
    assert got.select("user_id", "movie_id").equals(
        ratings.sort("user_id", "timestamp", "row").select("user_id", "movie_id")
    )


@pytest.mark.parametrize("least", [1, 2, 5, 14])
def test_users_and_films_with_few_ratings_are_dropped_by_their_counts_before(least):
    ratings = random_ratings(4)
    kept = ratings.filter(
        pl.len().over("user_id") >= least,
        pl.len().over("movie_id") >= least,
    )
    got = split_ratings(ratings, SplitConfig(min_interactions=least), 3)
    assert got.rows() == reference(kept, SplitConfig(), 3)
    assert 0 < len(got) <= len(ratings)


def test_times_before_1970_come_first():
    rows = [(1, movie, 5.0, time) for movie, time in enumerate([5, -3, 0, -1_000_000_000])]
    got = split_ratings(pl.DataFrame(rows, schema=RATINGS, orient="row"), SplitConfig(), 0)
    assert got["movie_id"].to_list() == [3, 1, 2, 0]


def test_ties_are_not_ordered_by_movie_id_and_differ_between_seeds():
    ratings = pl.DataFrame(
        {"user_id": [1] * 200, "movie_id": range(200), "rating": 5.0, "timestamp": 0}, schema=RATINGS
    )
    first, second = (split_ratings(ratings, SplitConfig(), seed)["movie_id"] for seed in (0, 1))
    ascending = (first.diff().drop_nulls() > 0).mean()
    assert 0.4 < ascending < 0.6
    assert not first.equals(second)


@pytest.mark.parametrize(
    ("num_likes", "labels"),
    [
        (4, {"graph": 4}),
        (5, {"graph": 3, "valid": 1, "test": 1}),
        (6, {"graph": 3, "target": 1, "valid": 1, "test": 1}),
        (10, {"graph": 3, "target": 5, "valid": 1, "test": 1}),
        (12, {"graph": 5, "target": 5, "valid": 1, "test": 1}),
    ],
)
def test_labels_by_number_of_likes(num_likes, labels):
    rows = [(1, movie, 4.0, movie) for movie in range(num_likes)] + [(1, 50, 3.5, 0), (1, 51, 0.5, 99)]
    ratings = pl.DataFrame(rows, schema=RATINGS, orient="row")
    got = split_ratings(ratings, SplitConfig(), 0)
    assert Counter(got["label"].to_list()) == labels | {"other": 2}
    if num_likes >= 5:
        assert got.filter(pl.col("label") == "test")["movie_id"].item() == num_likes - 1


def test_written_shards_hold_every_row_once_with_each_viewer_in_one_shard(tmp_path):
    ratings = random_ratings(3)
    ratings.sort("user_id", "movie_id").write_parquet(tmp_path / "ratings.parquet")
    settings = SplitConfig(shards=4)
    (tmp_path / "out").mkdir()
    facts = write_split(tmp_path / "ratings.parquet", tmp_path / "out", settings, 0)
    parts = [
        pl.read_parquet(tmp_path / "out" / f"shard={n:03d}" / "part.parquet", hive_partitioning=False) for n in range(4)
    ]
    whole = split_ratings(ratings, settings, 0)
    assert all(part.schema == SPLIT and part.equals(part.sort("user_id", "position")) for part in parts)
    assert pl.concat(parts).sort("user_id", "position").equals(whole)
    assert sum(part["user_id"].n_unique() for part in parts) == facts["viewers"] == whole["user_id"].n_unique()
    assert facts["labels"] == {name: whole.filter(pl.col("label") == name).height for name in SPLIT["label"].categories}
    assert facts["likes"] == (ratings["rating"] >= 4.0).sum()
    assert facts["unseen_viewers"] == whole.filter("unseen")["user_id"].n_unique()
    assert facts["asked_viewers"] == {
        name: whole.filter(pl.col("label") == name)["user_id"].n_unique() for name in ("target", "valid", "test")
    }
    for name, found in facts["queries"].items():
        asked = whole.filter(pl.col("label") == name)
        assert found["warm"] + found["unseen"] == asked["user_id"].n_unique()
        assert found["unseen"] == asked.filter("unseen")["user_id"].n_unique()
        assert found["fewer than 5 likes"] == facts["viewers"] - asked["user_id"].n_unique()
    assert facts["protocol"] == "leave_one_out"
    assert not (tmp_path / "out" / STARTS).exists()


def test_a_viewer_stays_in_its_shard_whoever_else_rates(tmp_path):
    def shard_of(ratings: pl.DataFrame, name: str) -> dict[int, int]:
        ratings.sort("user_id").write_parquet(tmp_path / f"{name}.parquet")
        write_split(tmp_path / f"{name}.parquet", tmp_path / name, SplitConfig(shards=5), 3)
        return {
            user: number
            for number in range(5)
            for user in pl.read_parquet(tmp_path / name / f"shard={number:03d}" / "part.parquet")["user_id"]
        }

    ratings = random_ratings(7)
    of_all = shard_of(ratings, "all")
    of_some = shard_of(ratings.filter(pl.col("user_id") % 3 == 0, pl.col("user_id") != 3), "some")
    assert of_some.items() <= of_all.items()
    assert of_all == {user: int(mix([user], 3)[0]) % 5 for user in of_all}


def test_ratings_that_are_not_sorted_by_user_are_refused(tmp_path):
    random_ratings(8).reverse().write_parquet(tmp_path / "ratings.parquet")
    with pytest.raises(InputError, match=r"ratings\.parquet is not sorted by user_id; run ingest again"):
        write_split(tmp_path / "ratings.parquet", tmp_path / "out", SplitConfig(), 0)


def test_about_the_asked_share_of_viewers_is_unseen_whatever_their_ratings():
    ratings = pl.DataFrame({"user_id": range(20_000), "movie_id": 1, "rating": 5.0, "timestamp": 0}, schema=RATINGS)
    unseen = split_ratings(ratings, SplitConfig(unseen_share=0.05), 0)["unseen"]
    assert 0.045 < unseen.mean() < 0.055  # three standard deviations are 0.0046
