"""Two runs with a frozen evaluation set, up to the prompts: same queries, same films shown, no leak."""

from __future__ import annotations

import shutil

import polars as pl
import pytest
import small_world

from tests.unit.test_engine import SEED, examples, generate, retrieve
from tripletune.audit.audit import audit_shards
from tripletune.config import RetrieveConfig, SplitConfig
from tripletune.data.split.frozen import freeze_queries
from tripletune.data.split.write import write_split
from tripletune.schemas.ingest import RATINGS

FROZEN = 12


def later_ratings(ratings):
    """Three more films for every user, and for the first five a like of a film rated earlier."""
    rated = set(ratings.select("user_id", "movie_id").rows())
    unrated = {user: [film for film in range(1, 61) if (user, film) not in rated][:3] for user in range(1, 41)}
    new = [(user, film, 5.0, 2_000_000 + n) for user, films in unrated.items() for n, film in enumerate(films)]
    again = ratings.filter(pl.col("user_id") <= 5).group_by("user_id").agg(pl.col("movie_id").first())
    moved = ratings.join(again, on=["user_id", "movie_id"], how="semi")
    moved = moved.with_columns(timestamp=pl.lit(3_000_000, pl.Int64), rating=pl.lit(5.0, pl.Float32))
    kept = ratings.join(again, on=["user_id", "movie_id"], how="anti")
    return pl.concat([kept, moved, pl.DataFrame(new, schema=RATINGS, orient="row")])


def night(root, ratings, frozen=""):
    """A world whose split, retrieved films and prompts are made of these ratings."""
    world = small_world.make_world(root)
    shutil.rmtree(world.split)
    world.split.mkdir()
    ratings.sort("user_id").write_parquet(root / "ratings.parquet")
    facts = write_split(root / "ratings.parquet", world.split, SplitConfig(shards=2, frozen=frozen), SEED)
    small_world.write_trained_on(world)
    retrieve(world, RetrieveConfig(retriever="lightgcn"))
    generate(world, world.generate)
    return world, facts


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nights")
    ratings = small_world.make_rows().select(*RATINGS)
    first, _ = night(folder / "first", ratings)
    freeze_queries(first.split, FROZEN, SEED).write_parquet(folder / "frozen.parquet")
    second, facts = night(folder / "second", later_ratings(ratings), str(folder / "frozen.parquet"))
    return first, second, facts, pl.read_parquet(folder / "frozen.parquet")


def test_the_same_viewers_are_asked_the_same_with_the_same_films_shown(nights):
    first, second, facts, frozen = nights
    moved = set(range(1, 6)) & set(frozen["user_id"])
    assert moved
    assert facts["frozen"]["missing_viewers"] == sorted(moved)
    held = sorted(set(frozen["user_id"]) - moved)
    for purpose in ("valid", "test"):
        before, tonight = examples(first.generate, purpose), examples(second.generate, purpose)
        assert tonight["user_id"].to_list() == held
        shown = ["example_id", "cutoff", "unseen", "liked", "disliked", "answers"]
        assert tonight.select(shown).equals(before.filter(pl.col("user_id").is_in(held)).select(shown))
        ranked = pl.read_parquet(second.retrieve / "rankings.parquet").filter(purpose=purpose)
        assert ranked["user_id"].unique().sort().to_list() == held
    everybody = examples(second.generate, "train")["user_id"]
    assert set(everybody) - set(held)  # the other users still train


def test_nothing_leaks(nights):
    for world in nights[:2]:
        assert audit_shards(world.generate, world.split, world.retrieve, {"lightgcn": world.lightgcn}) == []


def test_what_a_held_viewer_liked_later_trains_nothing(nights):
    _, second, facts, frozen = nights
    held = sorted(set(frozen["user_id"]) - set(facts["frozen"]["missing_viewers"]))
    trained = pl.read_parquet(second.lightgcn / "trained_on.parquet").filter(pl.col("user_id").is_in(held))
    rows = small_world.read_split(second)
    late = rows.join(frozen.filter(purpose="valid").select("user_id", first="position"), on="user_id")
    late = late.filter(pl.col("position") >= pl.col("first"), pl.col("user_id").is_in(held))
    assert late.join(trained, on=["user_id", "movie_id"], how="semi").is_empty()
    assert late.filter(label="later").height >= 3 * len(held)
