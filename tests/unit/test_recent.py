"""The list of the last seven days against plain Python, and the sample of lists computed with another future."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import small_world

from tripletune.config import LISTED_FILMS, RetrieveConfig
from tripletune.retrieve import recent as recent_module
from tripletune.retrieve.candidates import retrieve_all
from tripletune.retrieve.recent import RecentLikes
from tripletune.schemas.retrieve import DAY, RECENT
from tripletune.stable_hash import tie_order

SEED = 7
WEEK = 7 * DAY
SETTINGS = RetrieveConfig(retriever="lightgcn", num_candidates=5)


def make_world(root: Path) -> small_world.World:
    world = small_world.make_world(root)
    small_world.spread_over_days(world)
    return world


def retrieve(world: small_world.World, out: Path, earlier: Path | None = None) -> pl.DataFrame:
    out.mkdir()
    retrieve_all(
        world.split, world.knowledge, world.specialists, out, SETTINGS, num_liked_triples=2, seed=SEED, earlier=earlier
    )
    return pl.read_parquet(out / "rankings.parquet")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> small_world.World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def out(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "retrieve"
    retrieve(world, folder)
    return folder


def by_hand(world: small_world.World, row: dict) -> list[int]:
    """One query at a time: count, sort by (likes of the week, likes of the fit, hash), drop the rated films."""
    rows = small_world.read_split(world)
    mine = rows.filter(pl.col("user_id") == row["user_id"], pl.col("position") < row["cutoff"])
    end = max(mine["timestamp"].max() // DAY * DAY, small_world.FIRST_DAY[row["purpose"]] * DAY)
    likes = rows.filter(pl.col("rating") >= 4)
    week = likes.filter(pl.col("timestamp") < end, pl.col("timestamp") >= end - WEEK)["movie_id"].to_list()
    fit = likes.filter(~pl.col("unseen"), pl.col("label").is_in(["graph", "target"]))["movie_id"].to_list()
    films = list(range(1, small_world.NUM_FILMS + 1))
    place = {films[film]: number for number, film in enumerate(tie_order(films, SEED))}
    films.sort(key=lambda film: (-week.count(film), -fit.count(film) if film not in week else 0, place[film]))
    rated = set(mine["movie_id"].to_list())
    return [film for film in films if film not in rated][:LISTED_FILMS]


def test_every_list_of_the_last_days_is_that_of_plain_python(world, out):
    rankings = pl.read_parquet(out / "rankings.parquet")
    lists = rankings.filter(retriever=RECENT).to_dicts()
    popular = rankings.filter(retriever="popularity")
    assert len(lists) == len(popular) > 70
    for row in lists:
        assert row["top"] == by_hand(world, row)
    by_key = {(row["user_id"], row["purpose"]): row for row in popular.to_dicts()}
    assert all(by_key[row["user_id"], row["purpose"]]["answer"] == row["answer"] for row in lists)


def test_the_windows_differ_by_user_and_some_hold_fewer_films_than_places(world, monkeypatch, tmp_path):
    ends, sizes = [], []
    order = RecentLikes.order

    def noted(self: RecentLikes, end: int):
        first, last = self.time_L.searchsorted([end - WEEK, end])
        ends.append(end)
        sizes.append(len(set(self.column_L[first:last].tolist())))
        return order(self, end)

    monkeypatch.setattr(recent_module.RecentLikes, "order", noted)
    retrieve(world, tmp_path / "out")
    assert len(set(ends)) > 5
    assert min(sizes) < LISTED_FILMS


def test_a_protocol_without_a_date_has_no_such_list(tmp_path):
    world = small_world.make_world(tmp_path / "world")
    assert RECENT not in retrieve(world, tmp_path / "out")["retriever"].to_list()


def test_the_list_is_made_again_where_another_user_alone_has_rated(world, out, tmp_path):
    """Everything else of an unchanged user is reused."""
    other = make_world(tmp_path / "world")
    for stage in ("lightgcn", "rgat"):
        for path in world.specialists[stage].iterdir():
            (other.specialists[stage] / path.name).write_bytes(path.read_bytes())
    rows = small_world.read_split(other)
    # user 39 has no query; its low ratings become likes
    rows = rows.with_columns(
        rating=pl.when(pl.col("user_id") == 39).then(5.0).otherwise("rating").cast(pl.Float32),
        label=pl.when(pl.col("user_id") == 39)
        .then(pl.lit("later"))
        .otherwise(pl.col("label").cast(pl.String))
        .cast(rows.schema["label"]),
    )
    small_world.write_split(other, rows)
    increment = retrieve(other, tmp_path / "increment", earlier=out)
    assert increment.equals(retrieve(other, tmp_path / "whole"))
    assert not increment.filter(retriever=RECENT).equals(
        pl.read_parquet(out / "rankings.parquet").filter(retriever=RECENT)
    )
