"""Several held-out likes per user in valid and test: labels, cutoffs, evidence and answers, by hand."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from tests.unit.split_frames import split_ratings
from tests.unit.test_split import random_ratings
from tests.unit.test_split_protocols import days_of_2000, global_time, global_time_reference, likes_of_viewers
from tripletune.config import FinetuneConfig, SplitConfig
from tripletune.config.presets import parse_config
from tripletune.data.split.frozen import freeze_queries
from tripletune.data.split.queries import count_queries, query_facts
from tripletune.data.split.write import write_split
from tripletune.errors import ConfigError
from tripletune.finetune.shards import valid_examples
from tripletune.judges import judges
from tripletune.prompts.evidence import collect_answers, collect_evidence
from tripletune.retrieve.histories import find_answers, find_history, find_questions, find_seen, read_only_users
from tripletune.schemas.generate import EXAMPLE_ID, EXAMPLES
from tripletune.schemas.ingest import RATINGS
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.split import SPLIT

SEED = 11
THREE = SplitConfig(held_out=3, min_graph=2, max_target=2, unseen_share=0.0)
LIKED, DISLIKED, NEITHER = 4.5, 1.0, 3.5


def rate(user: int, ratings: list[float]) -> pl.DataFrame:
    """Film 100 is the user's first, 101 the second, a second apart."""
    rows = [(user, 100 + place, rating, place) for place, rating in enumerate(ratings)]
    return pl.DataFrame(rows, schema=RATINGS, orient="row")


# positions of the likes: 0, 2, 3, 4, 6, 7, 9, 10, 12 and 13
BY_HAND = rate(
    1, [LIKED, DISLIKED, LIKED, LIKED, LIKED, NEITHER, LIKED, LIKED, DISLIKED, LIKED, LIKED, NEITHER, LIKED, LIKED]
)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return split_ratings(BY_HAND, THREE, SEED)


def test_the_newest_three_likes_are_test_the_three_before_valid_and_then_target_and_graph(rows):
    liked = rows.filter(pl.col("label") != "other")
    assert liked.select("position", "label").rows() == [
        (0, "graph"),
        (2, "graph"),
        (3, "target"),
        (4, "target"),
        (6, "valid"),
        (7, "valid"),
        (9, "valid"),
        (10, "test"),
        (12, "test"),
        (13, "test"),
    ]


def test_each_held_out_like_is_the_answer_of_its_own_query_from_all_rows_before_it(rows):
    queries = find_questions(rows)
    assert queries.select("purpose", "cutoff").rows() == [
        ("train", 3),
        *(("valid", cutoff) for cutoff in (6, 7, 9)),
        *(("test", cutoff) for cutoff in (10, 12, 13)),
    ]
    for answers in (find_answers(rows, queries), collect_answers(rows, queries)):
        assert answers.select("purpose", "cutoff", "movie_id").rows() == [
            ("train", 3, 103),
            ("train", 3, 104),
            *(("valid", cutoff, 100 + cutoff) for cutoff in (6, 7, 9)),
            *(("test", cutoff, 100 + cutoff) for cutoff in (10, 12, 13)),
        ]
    held_out = queries.filter(pl.col("purpose") != "train")
    likes = [0, 2, 3, 4, 6, 7, 9, 10, 12]
    for name, frame in (("history", find_history(rows, held_out)), ("seen", find_seen(rows, held_out))):
        for (_, _, cutoff), mine in frame.group_by(QUERY_KEY, maintain_order=True):
            before = range(cutoff) if name == "seen" else [place for place in likes if place < cutoff][::-1]
            assert mine["movie_id"].to_list() == [100 + place for place in before], (name, cutoff)
    evidence = collect_evidence(rows, held_out, dislike=3.0, max_liked=3, max_disliked=5)
    assert evidence.select("cutoff", "liked", "disliked").rows() == [
        (6, [104, 103, 102], [101]),
        (7, [106, 104, 103], [101]),
        (9, [107, 106, 104], [108, 101]),
        (10, [109, 107, 106], [108, 101]),
        (12, [110, 109, 107], [108, 101]),
        (13, [112, 110, 109], [108, 101]),
    ]


def test_ids_have_the_cutoff_where_a_user_has_several_queries_of_the_purpose():
    queries = find_questions(pl.concat([split_ratings(BY_HAND, THREE, SEED), all_liked(2, ["valid", "later", "test"])]))
    assert queries.select(EXAMPLE_ID)["example_id"].to_list() == [
        "1:train:3",
        *(f"1:valid:{cutoff}" for cutoff in (6, 7, 9)),
        *(f"1:test:{cutoff}" for cutoff in (10, 12, 13)),
        "2:valid",
        "2:test",
    ]


def all_liked(user: int, labels: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        [(user, 100 + place, 5.0, place, place, label, False) for place, label in enumerate(labels)],
        schema=SPLIT,
        orient="row",
    )


@pytest.mark.parametrize(("num_likes", "has_query"), [(7, False), (8, True)])
def test_a_user_with_too_few_likes_keeps_all_in_graph_and_has_no_query(num_likes, has_query):
    rows = split_ratings(rate(1, [LIKED] * num_likes), THREE, SEED)
    labels = rows["label"].to_list()
    assert labels == (["graph"] * 2 + ["valid"] * 3 + ["test"] * 3 if has_query else ["graph"] * num_likes)
    facts = query_facts(count_queries(rows, THREE, None))
    for purpose in ("valid", "test"):
        assert facts[purpose] == {
            "warm": int(has_query),
            "unseen": 0,
            **({} if has_query else {"fewer than 8 likes": 1}),
        }


def test_one_is_the_default_and_gives_one_query_of_each_purpose():
    ratings = random_ratings(1)
    rows = split_ratings(ratings, SplitConfig(), SEED)
    assert rows.equals(split_ratings(ratings, SplitConfig(held_out=1), SEED))
    likes = rows.filter(pl.col("rating") >= 4).group_by("user_id", maintain_order=True).agg(pl.col("label"))
    asked = likes.filter(pl.col("label").list.len() >= 5)["label"]
    assert {tuple(labels[-2:]) for labels in asked.to_list()} == {("valid", "test")}
    assert (
        rows["label"].value_counts().filter(pl.col("label").is_in(["valid", "test"]))["count"].to_list()
        == [len(asked)] * 2
    )
    queries = find_questions(rows).filter(pl.col("purpose") != "train")
    assert queries.select("user_id", "purpose").is_unique().all()
    assert queries.select(EXAMPLE_ID)["example_id"].str.count_matches(":").unique().to_list() == [1]


@pytest.mark.parametrize("held_out", [2, 3])
def test_global_time_holds_out_the_first_likes_of_each_period_and_calls_the_others_later(held_out):
    config = global_time(held_out=held_out)
    split = split_ratings(days_of_2000(1), config, 0)
    one_each = split_ratings(days_of_2000(1), global_time(), 0)
    for user, likes in likes_of_viewers(split).items():
        taken = {"valid": 0, "test": 0}
        want = []
        reference = global_time_reference([time for time, _ in likes], global_time())
        parts = ["test" if time >= DAY_5 else "valid" if time >= DAY_4 else "" for time, _ in likes]
        is_asked = {"valid", "test"} & set(reference)
        for label, part in zip(reference, parts, strict=True):
            if is_asked and part and taken[part] < held_out:
                taken[part] += 1
                want.append(part)
            else:
                want.append(label)
        assert [label for _, label in likes] == want, user
    several = split.filter(pl.col("label") == "test").group_by("user_id").len()["len"]
    assert several.max() == held_out
    assert several.min() == 1  # and a user with fewer has those
    unchanged = pl.col("label").is_in(["graph", "target", "other"])
    assert split.filter(unchanged).equals(one_each.filter(unchanged))
    queries = find_questions(split).filter(purpose="test")
    assert len(queries) == several.sum()


DAY_4, DAY_5 = (pl.Series([date(2000, 1, day)]).dt.epoch("s").item() for day in (4, 5))


def test_ratio_refuses_several():
    with pytest.raises(
        ConfigError, match="held_out = 2 needs protocol = 'leave_one_out' or 'global_time', not 'ratio'"
    ):
        parse_config({"dataset": "x", "split": {"protocol": "ratio", "held_out": 2}}, "here")


def test_frozen_queries_of_several_likes_keep_their_evidence_and_answers(tmp_path: Path):
    """Also where the later run holds out another number: the file says which queries there are."""
    ratings = random_ratings(1)

    def split(name: str, ratings: pl.DataFrame, settings: SplitConfig) -> tuple[pl.DataFrame, Path]:
        (tmp_path / name).mkdir()
        ratings.sort("user_id").write_parquet(tmp_path / name / "ratings.parquet")
        write_split(tmp_path / name / "ratings.parquet", tmp_path / name / "split", settings, SEED)
        files = sorted((tmp_path / name).glob("split/*/part.parquet"))
        return pl.concat(pl.read_parquet(file, hive_partitioning=False) for file in files), tmp_path / name / "split"

    before, folder = split("first", ratings, SplitConfig(held_out=2, shards=2))
    frozen = freeze_queries(folder, 10, SEED)
    assert frozen.group_by("user_id", "purpose").len()["len"].unique().to_list() == [2]
    assert frozen.equals(frozen.sort("user_id", "purpose", "position"))
    frozen.write_parquet(tmp_path / "frozen.parquet")
    users = frozen["user_id"].unique()
    newer = pl.DataFrame([(user, 999, 5.0, 99) for user in users], schema=RATINGS, orient="row")
    for held_out in (2, 1):
        settings = SplitConfig(held_out=held_out, shards=2, frozen=str(tmp_path / "frozen.parquet"))
        now, folder = split(f"again-{held_out}", pl.concat([ratings, newer]), settings)
        asked = read_only_users(folder)
        assert asked is not None
        assert asked.to_list() == users.sort().to_list()
        mine = [find_questions(rows, users).filter(pl.col("purpose") != "train") for rows in (before, now)]
        assert mine[1].equals(mine[0])
        assert len(mine[0]) == 4 * len(users)
        assert find_answers(now, mine[1]).equals(find_answers(before, mine[0]))
        assert find_seen(now, mine[1]).equals(find_seen(before, mine[0]))


def test_every_valid_example_that_selects_is_taken_once(tmp_path: Path):
    """The limit is of examples; a user's are taken in order of the cutoff."""
    rows = [
        {
            "example_id": f"{user}:valid:{cutoff}",
            "user_id": user,
            "cutoff": cutoff,
            "candidates": [1, 2],
            "answers": [1 if cutoff != 7 else 3],
        }
        for user in range(1, 13)
        for cutoff in (6, 7, 9)
    ]
    (tmp_path / "valid").mkdir()
    frame = pl.DataFrame(rows, schema_overrides={name: EXAMPLES[name] for name in rows[0]})
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in EXAMPLES.items() if name not in rows[0]]
    frame.with_columns(missing).sample(fraction=1, shuffle=True, seed=3).write_parquet(
        tmp_path / "valid" / "shard-000.parquet"
    )
    found = valid_examples(tmp_path, 100, FinetuneConfig(), SEED)["example_id"].to_list()
    users = pl.Series(range(1, 13), dtype=pl.Int32)
    selecting = users.filter(~judges(users, SEED)).to_list()
    assert sorted(found) == sorted(f"{user}:valid:{cutoff}" for user in selecting for cutoff in (6, 9))
    assert [int(name.split(":")[2]) for name in found] == [6, 9] * len(selecting)
    assert valid_examples(tmp_path, 3, FinetuneConfig(), SEED)["example_id"].to_list() == found[:3]
