"""The split against a slow reference written from the rules, and what must not change it."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import polars as pl
import pytest

from tripletune.config import SplitConfig
from tripletune.data import split
from tripletune.data.split import split_ratings, write_split
from tripletune.schemas import RATINGS, SPLIT
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
    """The rules of the design, one viewer at a time."""
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
    got = split_ratings(ratings.lazy(), settings, seed).collect()
    assert got.schema == SPLIT
    assert got.rows() == reference(ratings, settings, seed)


def test_row_order_does_not_change_the_split():
    ratings = random_ratings(1)
    shuffled = ratings.sample(fraction=1.0, shuffle=True, seed=5)
    settings = SplitConfig()
    assert (
        split_ratings(shuffled.lazy(), settings, 0)
        .collect()
        .equals(split_ratings(ratings.lazy(), settings, 0).collect())
    )


def test_ratings_given_later_leave_the_order_of_the_earlier_ones_alone():
    ratings = random_ratings(2)
    later = ratings.filter(pl.col("movie_id") % 3 == 0).with_columns(
        pl.col("movie_id") + 1000, timestamp=pl.col("timestamp") + 6
    )
    columns = ["user_id", "movie_id", "position", "unseen"]
    before = split_ratings(ratings.lazy(), SplitConfig(), 0).select(columns).collect()
    after = (
        split_ratings(pl.concat([ratings, later.cast(dict(RATINGS))]).lazy(), SplitConfig(), 0)
        .select(columns)
        .collect()
    )
    assert after.filter(pl.col("movie_id") < 1000).equals(before)


def test_ties_are_not_ordered_by_movie_id_and_differ_between_seeds():
    ratings = pl.DataFrame(
        {"user_id": [1] * 200, "movie_id": range(200), "rating": 5.0, "timestamp": 0}, schema=RATINGS
    )
    first, second = (split_ratings(ratings.lazy(), SplitConfig(), seed).collect()["movie_id"] for seed in (0, 1))
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
    got = split_ratings(ratings.lazy(), SplitConfig(), 0).collect()
    assert Counter(got["label"].to_list()) == labels | {"other": 2}
    if num_likes >= 5:
        assert got.filter(pl.col("label") == "test")["movie_id"].item() == num_likes - 1


def test_written_shards_hold_every_row_once_with_each_viewer_in_one_shard(tmp_path):
    ratings = random_ratings(3)
    ratings.sort("user_id", "timestamp", "movie_id").write_parquet(tmp_path / "ratings.parquet")
    settings = SplitConfig(shards=4)
    (tmp_path / "out").mkdir()
    facts = write_split(tmp_path / "ratings.parquet", tmp_path / "out", settings, 0)
    parts = [
        pl.read_parquet(tmp_path / "out" / f"shard={n:03d}" / "part.parquet", hive_partitioning=False) for n in range(4)
    ]
    whole = split_ratings(ratings.lazy(), settings, 0).collect()
    assert all(part.schema == SPLIT and part.equals(part.sort("user_id", "position")) for part in parts)
    assert pl.concat(parts).sort("user_id", "position").equals(whole)
    assert sum(part["user_id"].n_unique() for part in parts) == facts["viewers"] == whole["user_id"].n_unique()
    assert facts["labels"] == {name: whole.filter(pl.col("label") == name).height for name in SPLIT["label"].categories}
    assert facts["likes"] == (ratings["rating"] >= 4.0).sum()
    assert facts["unseen_viewers"] == whole.filter("unseen")["user_id"].n_unique()


def test_a_large_file_split_in_pieces_gives_the_same_rows(tmp_path, monkeypatch):
    random_ratings(5).sort("user_id", "timestamp").write_parquet(tmp_path / "ratings.parquet")
    facts = []
    for name, piece in (("whole", 1 << 21), ("pieces", 97), ("single viewers", 1)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(split, "_PIECE", piece)
        facts.append(write_split(tmp_path / "ratings.parquet", tmp_path / name, SplitConfig(), 0))
    whole, *others = (
        pl.read_parquet(tmp_path / name / "**/*.parquet") for name in ("whole", "pieces", "single viewers")
    )
    assert all(other.equals(whole) for other in others)
    assert facts[0] == facts[1] == facts[2]


def test_writing_twice_gives_the_same_bytes_and_a_shard_without_viewers_is_an_empty_file(tmp_path):
    random_ratings(4, viewers=3).sort("user_id", "timestamp").write_parquet(tmp_path / "ratings.parquet")
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_split(tmp_path / "ratings.parquet", tmp_path / name, SplitConfig(), 0)
        contents.append(
            {p.relative_to(tmp_path / name): p.read_bytes() for p in sorted((tmp_path / name).rglob("*.parquet"))}
        )
    assert contents[0] == contents[1]
    assert len(contents[0]) == 8


def test_about_the_asked_share_of_viewers_is_unseen_whatever_their_ratings():
    ratings = pl.DataFrame({"user_id": range(20_000), "movie_id": 1, "rating": 5.0, "timestamp": 0}, schema=RATINGS)
    unseen = split_ratings(ratings.lazy(), SplitConfig(unseen_share=0.05), 0).collect()["unseen"]
    assert 0.045 < unseen.mean() < 0.055  # three standard deviations are 0.0046
