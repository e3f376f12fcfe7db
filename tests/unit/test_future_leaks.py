"""Leaks of the future are planted in the code that retrieves, and the audit of what it then writes finds them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small_world
from written_run import Run, rewrite, write_run

from tests.unit.test_engine import SEED, generate
from tripletune.audit import audit as auditing
from tripletune.audit.audit import audit_shards
from tripletune.audit.leaks import Leak
from tripletune.audit.popularity import KIND
from tripletune.audit.requeried import KINDS
from tripletune.config import RetrieveConfig, SequenceConfig
from tripletune.errors import InputError
from tripletune.models.sequence.fit import train_sequence
from tripletune.retrieve import histories, retriever, topics
from tripletune.retrieve.candidates import retrieve_all
from tripletune.retrieve.rankings import rank_by_popularity
from tripletune.retrieve.recent import RecentLikes
from tripletune.retrieve.requery import change_future, draw
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import DAY, RECENT, REQUERIED
from tripletune.store.request_time import reading_request_time

SETTINGS = RetrieveConfig(retriever="sequence", similar_viewers=5, num_topics=4)
SMALL = SequenceConfig(dim=8, heads=2, layers=1, max_length=10, max_steps=20, eval_every=10, batch_viewers=16)
BEFORE = histories._before


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> small_world.World:
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    small_world.spread_over_days(world)
    world.sequence.mkdir()
    train_sequence(world.split, world.sequence, SMALL, SEED)
    return world


@pytest.fixture
def world(clean, tmp_path) -> small_world.World:
    shutil.copytree(clean.root, tmp_path / "world")
    return small_world.World(tmp_path / "world")


def audit(world: small_world.World) -> list[Leak]:
    """Write lists and prompts with the code as it is now, and audit them."""
    trained = {"lightgcn": world.lightgcn, "rgat": world.rgat, "sequence": world.sequence}
    inputs = world.split, world.knowledge, trained
    retrieve_all(*inputs, world.retrieve, SETTINGS, num_liked_triples=5, seed=SEED)
    generate(world, world.generate, settings=SETTINGS)
    shutil.copy(world.lightgcn / "trained_on.parquet", world.rgat)
    return audit_shards(world.generate, world.split, world.retrieve, trained)


def lists(leaks: list[Leak], kind: str) -> set[str]:
    """Names of the lists in which a kind was found."""
    return {name.split(":")[0] for leak in leaks if leak.kind == kind for name in leak.detail.split(", ")}


def test_a_clean_run_has_no_leak_and_every_purpose_and_list_was_computed_again(world):
    assert audit(world) == []
    again = pl.read_parquet(world.retrieve / "requeried.parquet")
    assert again["purpose"].unique().sort().to_list() == ["train", "valid", "test"]
    assert set(again["retriever"]) == {
        *("popularity", RECENT, "rgat", "lightgcn", "sequence"),
        *("candidates", "ranking", "similar", "topics"),
    }
    assert again["user_id"].n_unique() > 30


def told_the_time(rows: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
    """The newest rating before the cutoff has the time of the answer."""
    found = BEFORE(rows, queries)
    if "timestamp" not in rows.columns:
        return found
    asked = queries.select(QUERY_KEY).join(rows, left_on=["user_id", "cutoff"], right_on=["user_id", "position"])
    asked = asked.select(*QUERY_KEY, asked="timestamp")
    newest = pl.col("position") == pl.col("position").max().over(QUERY_KEY)
    time = pl.when(newest).then("asked").otherwise("timestamp")
    return found.join(asked, on=QUERY_KEY, maintain_order="left").with_columns(timestamp=time).drop("asked")


def test_a_list_that_knows_the_time_of_the_request_is_found(world, monkeypatch):
    monkeypatch.setattr(histories, "_before", told_the_time)
    leaks = audit(world)
    assert lists(leaks, KINDS["time"]) == {"sequence", "candidates", "ranking", RECENT}
    assert KINDS["ratings"] not in {leak.kind for leak in leaks}


@pytest.fixture
def timed(world) -> small_world.World:
    """A run whose sequence model reads the time of the request."""
    shutil.rmtree(world.sequence)
    world.sequence.mkdir()
    train_sequence(world.split, world.sequence, SMALL.model_copy(update={"request_time": True}), SEED)
    return world


def test_a_model_that_reads_the_time_of_the_request_says_so_and_is_no_leak(timed):
    assert reading_request_time({"lightgcn": timed.lightgcn, "sequence": timed.sequence}) == ("sequence",)
    assert audit(timed) == []
    again = pl.read_parquet(timed.retrieve / "requeried.parquet").filter(pl.col("retriever") == "sequence")
    written = pl.read_parquet(timed.retrieve / "rankings.parquet").drop("answer")
    both = again.join(written, on=[*QUERY_KEY, "retriever"], suffix="_written")
    moved = both.group_by("change").agg(pl.col("top").ne(pl.col("top_written")).mean())
    share = dict(moved.iter_rows())
    assert share["time"] > 0.3
    assert share["ratings"] == 0


def test_if_it_did_not_say_so_its_lists_would_be_found(timed, monkeypatch):
    monkeypatch.setattr(auditing, "reading_request_time", lambda _: ())
    leaks = audit(timed)
    assert lists(leaks, KINDS["time"]) == {"sequence", "candidates", "ranking"}
    assert {leak.kind for leak in leaks} == {KINDS["time"]}


def test_no_other_list_may_know_the_time_of_the_request(timed, monkeypatch):
    monkeypatch.setattr(histories, "_before", told_the_time)
    assert lists(audit(timed), KINDS["time"]) == {RECENT}


def test_a_list_that_knows_the_answer_is_found(world, monkeypatch):
    def too_long(rows: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
        return BEFORE(rows, queries.with_columns(pl.col("cutoff") + 1)).with_columns(pl.col("cutoff") - 1)

    monkeypatch.setattr(histories, "_before", too_long)
    monkeypatch.setattr(topics, "MIN_RATIO", 0.0)  # likes in this world are no more alike than by chance
    found = lists(audit(world), KINDS["ratings"])
    assert found >= {"topics", "popularity", RECENT, "rgat", "lightgcn", "sequence", "candidates"}


def test_popularity_that_counts_the_answers_is_found(world, monkeypatch):
    likes = small_world.read_split(world).filter(pl.col("rating") >= 4)["movie_id"]
    count_of = dict(likes.value_counts().iter_rows())

    def rank(like_counts_M, seen, num_viewers):
        ids_M = retriever.Retriever.catalogue_ids
        return rank_by_popularity(np.array([count_of.get(film, 0) for film in ids_M]), seen, num_viewers)

    loaded = retriever.load_lightgcn

    def load(*args, **options):
        fits = loaded(*args, **options)
        monkeypatch.setattr(retriever.Retriever, "catalogue_ids", fits["b"].catalogue.ids_M.tolist(), raising=False)
        return fits

    monkeypatch.setattr(retriever, "load_lightgcn", load)
    monkeypatch.setattr(retriever, "rank_by_popularity", rank)
    assert lists(audit(world), KIND) == {"popularity"}


@pytest.mark.parametrize("days", [1, 7, 400])
def test_popularity_of_the_last_days_that_counts_later_days_is_found(world, monkeypatch, days):
    order = RecentLikes.order
    monkeypatch.setattr(RecentLikes, "order", lambda self, end: order(self, end + days * DAY))
    assert lists(audit(world), KIND) == {RECENT}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return write_run(tmp_path / "run")


def found(run: Run) -> list[tuple[int, str, str, str]]:
    leaks = audit_shards(run.generate, run.split, run.retrieve, run.specialists)
    return [(leak.rule, leak.kind, leak.subject, leak.detail) for leak in leaks]


def turn(change: str, retriever: str) -> Callable[[list[dict]], None]:
    """Turn round the lists of user 3's test query."""

    def damage(rows: list[dict]) -> None:
        for row in rows:
            if (row["user_id"], row["purpose"], row["change"], row["retriever"]) == (3, "test", change, retriever):
                row["top"] = row["top"][::-1]

    return damage


@pytest.mark.parametrize("change", ["time", "ratings"])
def test_a_list_that_moved_is_named_with_its_query(run, change):
    rewrite(run.retrieve / "requeried.parquet", turn(change, "lightgcn"))
    rewrite(run.retrieve / "requeried.parquet", turn(change, "rgat"))
    assert found(run) == [(5, KINDS[change], "3:test", "lightgcn, rgat")]


def test_the_ratings_may_not_tell_even_a_model_that_knows_the_time(run):
    (run.lightgcn / "model.json").write_text('{"request_time": true}')
    rewrite(run.retrieve / "requeried.parquet", turn("time", "lightgcn"))
    assert found(run) == []
    rewrite(run.retrieve / "requeried.parquet", turn("ratings", "lightgcn"))
    assert found(run) == [(5, KINDS["ratings"], "3:test", "lightgcn")]


def test_lists_that_were_not_computed_again_prove_nothing(run):
    rewrite(run.retrieve / "requeried.parquet", lambda rows: [row for row in rows if row["change"] == "ratings"])
    assert found(run) == [(0, "no list was computed again", "time", "requeried.parquet")]
    REQUERIED.to_frame().write_parquet(run.retrieve / "requeried.parquet")
    assert [line[2] for line in found(run)] == ["ratings", "time"]
    (run.retrieve / "requeried.parquet").unlink()
    with pytest.raises(InputError, match=r"requeried.parquet is missing; run retrieve again"):
        found(run)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda run, top: [top[1], *top[1:]], "a film stands twice in it, or is unknown to the fit"),
        (lambda run, top: [999, *top[1:]], "a film stands twice in it, or is unknown to the fit"),
        (lambda run, top: [run.order[3][0], *top[1:]], "it names a film that was rated before the cutoff"),
        (lambda run, top: top[::-1], "at place 1 is not the next by likes"),
    ],
)
def test_a_list_by_popularity_that_is_none_is_found(run, change, detail):
    def damage(rows: list[dict]) -> None:
        for row in rows:
            if (row["user_id"], row["purpose"], row["retriever"]) == (3, "test", "popularity"):
                row["top"] = change(run, row["top"])

    rewrite(run.retrieve / "rankings.parquet", damage)
    (line,) = [line for line in found(run) if line[1] == KIND]
    assert line[:3] == (5, KIND, "3:test")
    assert line[3].startswith("popularity: ")
    assert line[3].endswith(detail)


def test_a_recent_list_without_a_date_for_all_users_is_found(run):
    def add(rows: list[dict]) -> list[dict]:
        return [*rows, *({**row, "retriever": RECENT} for row in rows if row["retriever"] == "popularity")]

    rewrite(run.retrieve / "rankings.parquet", add)
    assert {line[3] for line in found(run)} == {f"{RECENT}: the split has no starts.json"}


def test_the_future_alone_is_changed():
    rows = small_world.make_rows().sort("user_id", "position")
    queries = draw(small_world_queries(rows), SEED)
    assert queries["user_id"].is_unique().all()
    assert queries["purpose"].n_unique() == 3
    rows = rows.join(queries.select("user_id"), on="user_id", how="semi", maintain_order="left")
    joined = rows.join(queries, on="user_id", maintain_order="left")
    after = joined["position"] >= joined["cutoff"]
    for change, columns in (("time", ["timestamp"]), ("ratings", ["movie_id", "rating"])):
        changed = change_future(rows, queries, change)
        assert changed.filter(~after).equals(rows.filter(~after))
        assert changed.drop(columns).equals(rows.drop(columns))
        for column in columns:
            is_new = changed.filter(after)[column] != rows.filter(after)[column]
            assert is_new.mean() > (0.7 if column == "rating" else 0.95)


def small_world_queries(rows: pl.DataFrame) -> pl.DataFrame:
    return histories.find_questions(rows, train_cutoffs=2).select(QUERY_KEY)
