"""Evaluation set frozen from an earlier run: same users, cutoffs, evidence and answers; later likes train nothing."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from tests.unit.split_frames import split_ratings
from tests.unit.test_split import random_ratings
from tests.unit.test_split_protocols import days_of_2000, global_time
from tripletune.cli.main import main
from tripletune.config import RunConfig, SplitConfig
from tripletune.config.presets import parse_config
from tripletune.data.split.frozen import freeze_queries
from tripletune.data.split.write import write_split
from tripletune.errors import ConfigError, InputError
from tripletune.pipeline.resolve import resolve
from tripletune.retrieve.histories import find_answers, find_history, find_questions, find_seen, read_only_users
from tripletune.schemas.ingest import RATINGS
from tripletune.schemas.split import FROZEN
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, write_run

SEED = 11
COLUMNS = ["movie_id", "rating", "timestamp", "position"]


def night(folder: Path, ratings: pl.DataFrame, **settings) -> tuple[pl.DataFrame, dict]:
    """Split rows and facts."""
    folder.mkdir()
    ratings.sort("user_id").write_parquet(folder / "ratings.parquet")
    facts = write_split(folder / "ratings.parquet", folder / "split", SplitConfig(**{"shards": 3, **settings}), SEED)
    rows = pl.concat(
        pl.read_parquet(path, hive_partitioning=False) for path in sorted(folder.glob("split/*/part.parquet"))
    )
    return rows.sort("user_id", "position"), facts


def later_ratings(ratings: pl.DataFrame, viewers: list[int], time: int = 50) -> pl.DataFrame:
    """Seven new films for each user, liked and not, after all others."""
    rows = [(user, 1000 + n, 2.0 + n / 2, time + n) for user in viewers for n in range(7)]
    return pl.concat([ratings, pl.DataFrame(rows, schema=RATINGS, orient="row")])


@pytest.fixture
def first(tmp_path):
    ratings = random_ratings(1)
    rows, _ = night(tmp_path / "first", ratings)
    frozen = freeze_queries(tmp_path / "first" / "split", 25, SEED)
    frozen.write_parquet(tmp_path / "frozen.parquet")
    return ratings, rows, frozen, str(tmp_path / "frozen.parquet")


def questions_of(rows: pl.DataFrame, asked: pl.Series) -> tuple[pl.DataFrame, ...]:
    """Valid and test queries with their answers, earlier likes, and all earlier ratings."""
    queries = find_questions(rows, asked).filter(pl.col("purpose") != "train")
    return queries, find_answers(rows, queries), find_history(rows, queries), find_seen(rows, queries)


def test_a_later_night_asks_the_same_questions_with_the_same_evidence(tmp_path, first):
    ratings, before, frozen, path = first
    users = frozen["user_id"].unique()
    assert (len(users), frozen.schema) == (25, FROZEN)
    tonight, facts = night(tmp_path / "second", later_ratings(ratings, list(range(3, 123))), frozen=path)
    asked = read_only_users(tmp_path / "second" / "split")
    assert asked.to_list() == users.sort().to_list()
    for now, then in zip(questions_of(tonight, asked), questions_of(before, users), strict=True):
        assert now.equals(then)
    assert facts["frozen"] == {"viewers": 25, "held": 25, "missing": 0, "missing_viewers": []}
    assert facts["asked_viewers"]["test"] == 25
    assert facts["queries"]["test"]["not in the frozen set"] == facts["viewers"] - 25
    # training likes, and the rows that a training prompt can show, are unchanged
    mine = pl.col("user_id").is_in(users.implode())
    learned = pl.col("label").is_in(["graph", "target"])
    assert tonight.filter(mine, learned).equals(before.filter(mine, learned))
    added = tonight.filter(mine, pl.col("movie_id") >= 1000)
    assert added.filter(pl.col("rating") >= 4)["label"].unique().to_list() == ["later"]
    assert added.filter(pl.col("rating") < 4)["label"].unique().to_list() == ["other"]
    plain = split_ratings(later_ratings(ratings, list(range(3, 123))), SplitConfig(), SEED)
    assert tonight.filter(~mine).equals(plain.filter(~mine))


@pytest.mark.parametrize("what", ["answer gone", "answer again", "evidence again", "evidence revised", "came late"])
def test_a_viewer_whose_rows_changed_is_dropped_counted_and_named(tmp_path, first, what):
    ratings, before, frozen, path = first
    user = frozen["user_id"][0]
    rows = before.filter(user_id=user)
    test = rows.filter(label="test").row(0, named=True)
    film = (
        test["movie_id"] if what.startswith("answer") else rows.filter(pl.col("position") < test["position"] - 1)[0, 1]
    )
    is_it = (pl.col("user_id") == user) & (pl.col("movie_id") == film)
    changed = {
        "answer gone": ratings.filter(~is_it),
        "answer again": ratings.with_columns(timestamp=pl.when(is_it).then(60).otherwise("timestamp")),
        "evidence again": ratings.with_columns(timestamp=pl.when(is_it).then(60).otherwise("timestamp")),
        "evidence revised": ratings.with_columns(rating=pl.when(is_it).then(0.5).otherwise("rating").cast(pl.Float32)),
        "came late": pl.concat([ratings, pl.DataFrame([(user, 999, 1.0, -5)], schema=RATINGS, orient="row")]),
    }[what]
    tonight, facts = night(tmp_path / "second", changed, frozen=path)
    assert facts["frozen"] == {"viewers": 25, "held": 24, "missing": 1, "missing_viewers": [user]}
    asked = read_only_users(tmp_path / "second" / "split")
    assert user not in asked.to_list()
    plain = split_ratings(changed, SplitConfig(), SEED)
    assert tonight.filter(user_id=user).equals(plain.filter(user_id=user))
    assert find_questions(tonight, asked).filter(pl.col("purpose") != "train", user_id=user).is_empty()


def test_without_a_file_everybody_is_asked(tmp_path, first):
    _, before, _, _ = first
    assert read_only_users(tmp_path / "first" / "split") is None
    assert find_questions(before, None).equals(find_questions(before))


def test_bytes_do_not_depend_on_the_order_of_rows(tmp_path, first):
    ratings, _, _, path = first
    more = later_ratings(ratings, list(range(3, 123)))
    for name, rows in (("one", more), ("two", more.sample(fraction=1.0, shuffle=True, seed=1))):
        night(tmp_path / name, rows, frozen=path)
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one" / "split").rglob("*.*"))
    assert any(file.name == "asked.json" for file in files)
    for file in files:
        if (tmp_path / "one" / file).is_file():
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_run_that_asks_a_frozen_set_freezes_to_the_same_set(tmp_path, first):
    ratings, _, frozen, path = first
    night(tmp_path / "second", later_ratings(ratings, list(range(3, 123))), frozen=path)
    assert freeze_queries(tmp_path / "second" / "split", 0, SEED).equals(frozen)


def test_global_time_holds_its_questions_where_the_days_are_the_same(tmp_path):
    ratings = days_of_2000(4)
    dates = {"protocol": "global_time", "valid_from": date(2000, 1, 4), "test_from": date(2000, 1, 5)}
    before, _ = night(tmp_path / "first", ratings, **dates)
    path = tmp_path / "frozen.parquet"
    freeze_queries(tmp_path / "first" / "split", 0, SEED).write_parquet(path)
    tonight, facts = night(
        tmp_path / "second", later_ratings(ratings, list(range(3, 123)), 10**9), frozen=str(path), **dates
    )
    assert facts["frozen"]["missing"] == 0
    users = before.filter(label="test")["user_id"].unique()
    held = pl.col("user_id").is_in(users.implode()) & (pl.col("movie_id") < 1000)
    assert tonight.filter(held).equals(before.filter(pl.col("user_id").is_in(users.implode())))
    moved = global_time(frozen=str(path)).model_copy(update={"test_from": date(2000, 1, 6)})
    with pytest.raises(ConfigError, match=r"split\.test_from = 2000-01-06 is after \d+ test answers of split\.frozen"):
        split_ratings(ratings, moved, SEED)


def damaged(path: Path, how: str) -> None:
    if how == "text":
        path.write_text("not Parquet")
    elif how == "other columns":
        random_ratings(1).write_parquet(path)
    else:
        FROZEN.to_frame().write_parquet(path)


@pytest.mark.parametrize("how", ["text", "other columns", "empty"])
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path, how):
    damaged(tmp_path / "frozen.parquet", how)
    with pytest.raises(InputError, match=r"split\.frozen = .*`tripletune freeze`") as caught:
        split_ratings(random_ratings(1), SplitConfig(frozen=str(tmp_path / "frozen.parquet")), SEED)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_dataset_or_seed_is_refused_in_one_line(tmp_path, first):
    with pytest.raises(InputError, match=r"none of its 25 users .* seed and split.tie_order") as caught:
        night(tmp_path / "second", random_ratings(2), frozen=first[3])
    assert "\n" not in str(caught.value)


def test_ratio_has_no_frozen_set():
    with pytest.raises(ConfigError, match=r"frozen needs protocol"):
        parse_config({"dataset": "x", "split": {"protocol": "ratio", "frozen": "f"}}, where="c.toml")


def test_the_fingerprint_knows_the_file_by_its_content(tmp_path, first):
    def prints(path: str) -> dict:
        return resolve(RunConfig(dataset="x", split=SplitConfig(frozen=path)), tmp_path).fingerprints

    inputs = resolve(RunConfig(dataset="x", split=SplitConfig(frozen=first[3])), tmp_path).ingredients["split"][
        "inputs"
    ]
    assert list(inputs) == ["frozen/frozen.parquet"]  # the input that plan names when it changed
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "frozen.parquet"
    moved.write_bytes(Path(first[3]).read_bytes())
    assert prints(str(moved)) == prints(first[3])
    pl.read_parquet(moved).head(4).write_parquet(moved)
    changed = prints(str(moved))
    assert changed["ingest"] == prints(first[3])["ingest"]
    assert changed["split"] != prints(first[3])["split"] != prints("")["split"]
    with pytest.raises(InputError, match=r"frozen = '/nowhere': no such file"):
        prints("/nowhere")


def test_the_command_keeps_the_questions_of_a_run(tmp_path, capsys):
    root, ratings = tmp_path / "artifacts", tmp_path / "ratings.parquet"
    random_ratings(1).sort("user_id").write_parquet(ratings)
    paths = RunPaths(root=root, dataset="x", fingerprints={"split": "5" * 32})
    split = paths.build("split", lambda work: write_split(ratings, work, SplitConfig(), SEED))
    record = {"name": "x-1", "dataset": "x", "status": "completed", "started": "2026-01-01T00:00:00Z"}
    config = {"dataset": "x", "seed": SEED}
    write_run(root, RunRecord.model_validate(record | {"config": config, "fingerprints": {"split": "5" * 32}}))
    out = tmp_path / "kept" / "frozen.parquet"
    assert main(["freeze", "--out", str(out), "--viewers", "6", "--artifacts", str(root)]) == 0
    assert capsys.readouterr().out == f"{out}: 12 queries of 6 users of x-1\n"
    assert pl.read_parquet(out).equals(freeze_queries(split, 6, SEED))
    none = tmp_path / "none"
    none.mkdir()
    write_split(ratings, none, SplitConfig(min_graph=99), SEED)
    with pytest.raises(InputError, match=r"has no test query"):
        freeze_queries(none, 6, SEED)
