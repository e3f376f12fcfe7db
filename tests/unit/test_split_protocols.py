"""global_time and ratio against slow references written from the rules, and their guarantees."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.split_frames import split_ratings
from tests.unit.test_split import random_ratings
from tripletune.config import SplitConfig
from tripletune.config.presets import load_config
from tripletune.data.split.write import write_split
from tripletune.errors import ConfigError
from tripletune.schemas.ingest import RATINGS
from tripletune.schemas.split import STARTS

DAY = 86_400
EPOCH = datetime(2000, 1, 1, tzinfo=UTC).timestamp()


def days_of_2000(seed: int) -> pl.DataFrame:
    """``random_ratings``, whose times 0 to 5 become noon of the first six days of 2000."""
    return random_ratings(seed).with_columns((pl.col("timestamp") * DAY + DAY // 2 + int(EPOCH)).cast(pl.Int64))


def january(day: int) -> date:
    return date(2000, 1, day)


def global_time(**changes) -> SplitConfig:
    return SplitConfig(protocol="global_time", valid_from=january(4), test_from=january(5), **changes)


def likes_of_viewers(split: pl.DataFrame, like: float = 4.0) -> dict[int, list[tuple[int, str]]]:
    """Time and label of each user's likes, in time order."""
    likes = defaultdict(list)
    for user, time, label in split.filter(pl.col("rating") >= like).select("user_id", "timestamp", "label").iter_rows():
        likes[user].append((time, label))
    return likes


def global_time_reference(times: list[int], config: SplitConfig) -> list[str]:
    """The rules for one user's likes, one like at a time."""
    starts = [
        datetime.combine(day, datetime.min.time(), UTC).timestamp() for day in (config.valid_from, config.test_from)
    ]
    learned = sum(time < starts[0] for time in times)
    num_target = max(0, min(config.max_target, learned - config.min_graph))
    labels, asked = [], set()
    for place, time in enumerate(times):
        part = "test" if time >= starts[1] else "valid" if time >= starts[0] else "learned"
        if part == "learned":
            labels.append("target" if place >= learned - num_target else "graph")
        elif learned >= config.min_graph and part not in asked:
            asked.add(part)
            labels.append(part)
        else:
            labels.append("later")
    return labels


@pytest.mark.parametrize("config", [global_time(), global_time(min_graph=1, max_target=2), global_time(min_graph=6)])
def test_global_time_matches_the_rules_applied_one_like_at_a_time(config):
    ratings = days_of_2000(1)
    split = split_ratings(ratings, config, 0)
    for likes in likes_of_viewers(split).values():
        assert [label for _, label in likes] == global_time_reference([time for time, _ in likes], config)
    assert set(split["label"].unique()) == {"graph", "target", "valid", "test", "later", "other"}
    assert (split.filter(pl.col("rating") < 4)["label"] == "other").all()


def test_global_time_keeps_the_order_positions_and_unseen_viewers_of_leave_one_out():
    ratings = days_of_2000(2)
    columns = ["user_id", "movie_id", "position", "unseen"]
    assert (
        split_ratings(ratings, global_time(), 5)
        .select(columns)
        .equals(split_ratings(ratings, SplitConfig(), 5).select(columns))
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    valid_day=st.integers(1, 6),
    gap=st.integers(1, 4),
    min_graph=st.integers(1, 5),
    max_target=st.integers(1, 8),
)
def test_no_viewer_learns_from_a_row_as_late_as_anybodys_question(seed, valid_day, gap, min_graph, max_target):
    ratings = random_ratings(seed, viewers=25).with_columns(
        (pl.col("timestamp") * DAY + seed % DAY + int(EPOCH)).cast(pl.Int64)
    )
    config = SplitConfig(
        protocol="global_time",
        valid_from=january(valid_day),
        test_from=january(valid_day + gap),
        min_graph=min_graph,
        max_target=max_target,
    )
    split = split_ratings(ratings, config, seed)
    times = {label: split.filter(pl.col("label") == label)["timestamp"] for label in split["label"].unique()}
    learned = max((times[label].max() for label in ("graph", "target") if label in times), default=float("-inf"))
    asked = {label: times[label] for label in ("valid", "test") if label in times}
    assert all(learned < column.min() for column in asked.values())
    if len(asked) == 2:
        assert asked["valid"].max() < asked["test"].min()
    for likes in likes_of_viewers(split).values():
        counts = Counter(label for _, label in likes)
        assert counts["valid"] <= 1
        assert counts["test"] <= 1
        assert counts["target"] <= max_target
        if counts["target"] or counts["valid"] or counts["test"]:
            assert counts["graph"] >= min_graph


def test_a_rating_at_midnight_utc_belongs_to_the_new_day():
    midnight = int(EPOCH) + 3 * DAY
    rows = [(1, movie, 5.0, midnight - 10 + movie) for movie in range(9, 12)]
    rows += [(1, movie, 5.0, midnight - 99) for movie in range(3)]
    rows += [(1, movie, 5.0, midnight + DAY - 21 + movie) for movie in range(20, 22)]
    split = split_ratings(pl.DataFrame(rows, schema=RATINGS, orient="row"), global_time(max_target=1), 0)
    labels = dict(split.select("movie_id", "label").iter_rows())
    assert (labels[9], labels[10], labels[11]) == ("target", "valid", "later")
    assert (labels[20], labels[21]) == ("later", "test")


@pytest.mark.parametrize(
    ("valid_from", "test_from", "message"),
    [
        (2, 20, "split.test_from = 2000-01-20 leaves no test like: the ratings run from 2000-01-01 to 2000-01-06, "),
        (10, 20, "split.test_from = 2000-01-20 leaves no test like"),
        (1, 3, "split.test_from = 2000-01-03 leaves no test like.* with 3 likes before 2000-01-01 .*change split"),
    ],
)
def test_dates_that_leave_nothing_to_ask_are_refused_with_the_range_of_the_data(
    tmp_path, valid_from, test_from, message
):
    days_of_2000(3).write_parquet(tmp_path / "ratings.parquet")
    config = SplitConfig(protocol="global_time", valid_from=january(valid_from), test_from=january(test_from))
    with pytest.raises(ConfigError, match=message) as caught:
        write_split(tmp_path / "ratings.parquet", tmp_path / "out", config, 0)
    assert "\n" not in str(caught.value)


def test_an_empty_window_for_valid_is_refused_by_the_field_that_opens_it(tmp_path):
    ratings = days_of_2000(3).filter(pl.col("timestamp") // DAY != int(EPOCH) // DAY + 3)  # nothing on 4 January
    ratings.write_parquet(tmp_path / "ratings.parquet")
    with pytest.raises(ConfigError, match=r"split\.valid_from = 2000-01-04 leaves no valid like"):
        write_split(tmp_path / "ratings.parquet", tmp_path / "out", global_time(), 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("valid_from = 2000-01-02", "protocol = 'global_time' needs valid_from and test_from"),
        ("valid_from = 2000-01-02\ntest_from = 2000-01-02", "the first before the second"),
        ("valid_from = 2000-13-02\ntest_from = 2001-01-02", "cannot be read as TOML"),
    ],
)
def test_global_time_needs_two_days_in_order(tmp_path, lines, message):
    (tmp_path / "c.toml").write_text(f'dataset = "x"\n[split]\nprotocol = "global_time"\n{lines}\n')
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.toml")


def test_days_without_the_protocol_that_reads_them_are_refused(tmp_path):
    (tmp_path / "c.toml").write_text('dataset = "x"\n[split]\ntest_from = 2000-01-02\n')
    with pytest.raises(
        ConfigError, match=r"\[split\] valid_from and test_from need protocol = 'global_time', not 'leave"
    ):
        load_config(tmp_path / "c.toml")


def test_facts_tell_the_protocol_and_who_is_asked(tmp_path):
    days_of_2000(4).write_parquet(tmp_path / "ratings.parquet")
    facts = write_split(tmp_path / "ratings.parquet", tmp_path / "out", global_time(), 0)
    split = split_ratings(days_of_2000(4), global_time(), 0)
    assert facts["protocol"] == "global_time"
    assert facts["labels"] == {label: split.filter(pl.col("label") == label).height for label in facts["labels"]}
    assert facts["labels"]["test"] == facts["asked_viewers"]["test"] > 0


def test_every_user_is_counted_with_a_query_or_with_the_reason_why_there_is_none(tmp_path):
    days_of_2000(4).write_parquet(tmp_path / "ratings.parquet")
    config = global_time(min_graph=4, unseen_share=0.2)
    facts = write_split(tmp_path / "ratings.parquet", tmp_path / "out", config, 0)
    users = split_ratings(days_of_2000(4), config, 0).partition_by("user_id")
    none = {
        "valid": "no like from 2000-01-04 to before 2000-01-05",
        "test": "no like on or after 2000-01-05",
    }
    for purpose, late in none.items():
        want: Counter[str] = Counter()
        for rows in users:
            times = rows.filter(pl.col("rating") >= 4)["timestamp"].to_list()
            if purpose in rows["label"].to_list():
                want["unseen" if rows["unseen"][0] else "warm"] += 1
            elif sum(time < EPOCH + 3 * DAY for time in times) < 4:
                want["fewer than 4 likes before 2000-01-04"] += 1
            else:
                want[late] += 1
        assert facts["queries"][purpose] == want
        assert want.keys() == {"warm", "unseen", "fewer than 4 likes before 2000-01-04", late}
        assert sum(want.values()) == facts["viewers"] == facts["viewers_in"]
    starts = json.loads((tmp_path / "out" / STARTS).read_text())
    assert starts == {"valid": EPOCH + 3 * DAY, "test": EPOCH + 4 * DAY}


def ratio(order: str, **changes) -> SplitConfig:
    return SplitConfig(protocol="ratio", ratio_order=order, **changes)


def shares(num_likes: int, config: SplitConfig) -> tuple[int, int]:
    """Number of a user's likes that are valid and test."""
    valid, test = (max(1, round(num_likes * share * 1000) // 1000) for share in (config.valid_share, config.test_share))
    return (valid, test) if num_likes - valid - test >= config.min_graph else (0, 0)


@pytest.mark.parametrize("order", ["random", "chronological"])
@pytest.mark.parametrize(
    "changes",
    [{"like": 1.0, "dislike": 1.0}, {"valid_share": 0.25, "test_share": 0.3, "min_graph": 1, "max_target": 2}],
)
def test_ratio_keeps_back_the_shares_of_each_viewers_likes(order, changes):
    config = ratio(order, **changes)
    split = split_ratings(random_ratings(5), config, 0)
    sizes = set()
    for likes in likes_of_viewers(split, config.like).values():
        labels = [label for _, label in likes]
        valid, test = shares(len(labels), config)
        sizes.add((valid, test))
        learned = len(labels) - valid - test
        target = max(0, min(config.max_target, learned - config.min_graph)) if valid else 0
        in_order = ["graph"] * (learned - target) + ["target"] * target
        assert [label for label in labels if label in ("graph", "target")] == in_order
        assert Counter(labels) == Counter([*in_order, *["valid"] * valid, *["test"] * test])
        if order == "chronological":
            assert labels == in_order + ["valid"] * valid + ["test"] * test
    assert len(sizes) > 2


def test_a_share_of_a_hundred_likes_is_exact():
    ratings = pl.DataFrame([(1, movie, 5.0, movie) for movie in range(100)], schema=RATINGS, orient="row")
    split = split_ratings(ratings, ratio("random", valid_share=0.29, test_share=0.28), 0)
    assert Counter(split["label"]) == {"graph": 38, "target": 5, "valid": 29, "test": 28}  # .29 * 100 < 29 in floats


def test_random_ratio_draws_likes_of_every_age_and_others_with_another_seed():
    rows = [(user, movie, 5.0, movie) for user in range(400) for movie in range(20)]
    ratings = pl.DataFrame(rows, schema=RATINGS, orient="row")
    first, second = (split_ratings(ratings, ratio("random"), seed) for seed in (0, 1))
    drawn = first.filter(pl.col("label") == "test")["position"]
    assert len(drawn) == 800
    assert 9.0 < drawn.mean() < 10.0  # uniform over 0 to 19: 9.5, standard error .2
    assert set(drawn) == set(range(20))
    assert not first["label"].equals(second["label"])
    assert split_ratings(ratings.reverse(), ratio("random"), 0).equals(first)


def test_which_likes_a_random_ratio_draws_does_not_depend_on_their_times_or_ties():
    rows = [(1, movie, 5.0, 0) for movie in range(200)]
    tied = pl.DataFrame(rows, schema=RATINGS, orient="row")
    spread = tied.with_columns(timestamp=pl.col("movie_id").cast(pl.Int64))
    held_back = [
        set(split_ratings(frame, ratio("random"), 0).filter(pl.col("label") == "test")["movie_id"])
        for frame in (tied, spread)
    ]
    assert held_back[0] == held_back[1]
    position = split_ratings(tied, ratio("random"), 0).filter(pl.col("label") == "test")["position"]
    assert 70 < position.mean() < 130  # 20 of 200: neither the first nor the last of the tied
