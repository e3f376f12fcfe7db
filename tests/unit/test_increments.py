"""A run that computes only users whose evidence changed writes the same bytes as one that computes all users."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small_world

from tripletune.config import RunConfig
from tripletune.models.ease.fit import train_ease
from tripletune.pipeline.stages import run_generate, run_retrieve
from tripletune.retrieve import buckets, candidates
from tripletune.retrieve.reuse import digest_users
from tripletune.schemas.ingest import MOVIES, USERS
from tripletune.schemas.knowledge import ENTITIES
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import RETRIEVED, VIEWERS
from tripletune.schemas.split import SPLIT_LABELS
from tripletune.store.increments import write_unchanged
from tripletune.store.paths import RunPaths

SEED = 7
CONFIG: dict[str, Any] = {
    "dataset": "d",
    "seed": SEED,
    "retrieve": {"retriever": "lightgcn", "num_candidates": 20, "hint_films": 6, "similar_films": 3},
}
TRAINED = ("rgat", "lightgcn", "ease")
NEW, AGAIN, GONE, LATE, TWIN = 4, 6, 8, 10, 41


def publish(root: Path, world: small_world.World, night: str, **fields: Any) -> tuple[RunPaths, RunConfig]:
    """The stages before retrieve as finished outputs; trained models keep their fingerprint, as pinned ones do."""
    config = RunConfig.model_validate({**CONFIG, "retrieve": {**CONFIG["retrieve"], **fields}})
    tonight = ("ingest", "split", "knowledge", "retrieve", "generate")
    prints = {stage: (night if stage in tonight else "1") * 32 for stage in (*tonight, *TRAINED)}
    read = ("ingest", "knowledge", "split") if config.retrieve.similar_people else ("knowledge", "split")
    parents = {"retrieve": (*read, *TRAINED), "generate": ("ingest", "split", "retrieve", *TRAINED)}
    ingredients = {
        stage: {
            "source": {},
            "libraries": {},
            "fields": {"retrieve": config.field("retrieve")},
            "parents": {parent: prints[parent] for parent in parents.get(stage, ())}
            | ({"split": "a" * 32} if stage in TRAINED else {}),
            "inputs": {},
        }
        for stage in prints
    }
    paths = RunPaths(root=root, dataset="d", fingerprints=prints, ingredients=ingredients)
    for stage in ("ingest", "split", "knowledge", *TRAINED):
        paths.build(stage, lambda work, stage=stage: copy(world.root / stage, work))
    return paths, config


def copy(source: Path, work: Path) -> dict[str, Any]:
    shutil.copytree(source, work, dirs_exist_ok=True)
    return {}


def make(paths: RunPaths, config: RunConfig) -> RunPaths:
    run_retrieve(paths, config)
    run_generate(paths, config)
    return paths


def files(paths: RunPaths) -> dict[str, bytes]:
    return {
        f"{stage}/{path.relative_to(paths.folder(stage))}": path.read_bytes()
        for stage in ("retrieve", "generate")
        for path in sorted(paths.folder(stage).rglob("*.parquet"))
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> small_world.World:
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    shutil.copy(world.lightgcn / "trained_on.parquet", world.rgat / "trained_on.parquet")
    world.ease.mkdir()
    train_ease(world.split, world.ease, RunConfig.model_validate(CONFIG).retrieve, SEED)
    return world


@pytest.fixture(scope="module")
def first(world, tmp_path_factory) -> Path:
    """An artifact root with one finished run."""
    root = tmp_path_factory.mktemp("first")
    paths = make(*publish(root, world, "a"))
    assert paths.manifest("retrieve")["facts"]["nothing_reused"] == "there is no earlier output"
    return root


def add(rows: pl.DataFrame, user: int, film: int, rating: float, label: str) -> pl.DataFrame:
    """One more rating of a user, behind all others."""
    last = rows.filter(pl.col("user_id") == user).row(-1, named=True)
    row = {**last, "movie_id": film, "rating": rating, "position": last["position"] + 1, "label": label}
    return pl.concat([rows, pl.DataFrame([row], schema=rows.schema)]).sort("user_id", "position")


def move_on(rows: pl.DataFrame, user: int) -> pl.DataFrame:
    """Every held-out like of a user becomes the one before it, as when there is a newer like."""
    older = {"test": "valid", "valid": "target"}
    label = pl.col("label").cast(pl.String).replace(older).cast(SPLIT_LABELS)
    return rows.with_columns(label=pl.when(pl.col("user_id") == user).then(label).otherwise("label"))


def unrated(rows: pl.DataFrame, user: int) -> int:
    return min(set(range(1, small_world.NUM_FILMS)) - set(rows.filter(pl.col("user_id") == user)["movie_id"]))


@pytest.fixture(scope="module")
def second(world, tmp_path_factory) -> small_world.World:
    """The next run: a new like, a film rated again, a user gone, a late dislike, a new user; no new fit."""
    rows = small_world.read_split(world)
    rows = add(move_on(rows, NEW), NEW, unrated(rows, NEW), 5.0, "test")
    film = rows.filter(pl.col("user_id") == AGAIN, pl.col("label") == "graph")["movie_id"][0]
    rows = rows.filter((pl.col("user_id") != AGAIN) | (pl.col("movie_id") != film))
    rows = add(move_on(rows, AGAIN), AGAIN, film, 4.5, "test")
    rows = rows.filter(pl.col("user_id") != GONE)
    rows = add(rows, LATE, unrated(rows, LATE), 1.0, "other")
    twin = rows.filter(pl.col("user_id") == 7).with_columns(user_id=pl.lit(TWIN, pl.Int32))
    changed = small_world.World(tmp_path_factory.mktemp("second"))
    for stage in ("ingest", "knowledge", *TRAINED):
        shutil.copytree(getattr(world, stage), getattr(changed, stage))
    changed.split.mkdir()
    small_world.write_split(changed, pl.concat([rows, twin]))
    return changed


@pytest.mark.bytes
def test_only_changed_viewers_are_asked_and_the_bytes_are_those_of_a_full_run(
    first, second, tmp_path, monkeypatch, caplog
):
    full = make(*publish(tmp_path / "full", second, "b"))
    shutil.copytree(first, tmp_path / "next")
    asked: list[int] = []
    answer = buckets.Asking._answer

    def note(self: buckets.Asking, opened: list[buckets.Bucket]) -> Any:
        asked.extend(user for bucket in opened for user in bucket.asked["user_id"])
        return answer(self, opened)

    monkeypatch.setattr(buckets.Asking, "_answer", note)
    with caplog.at_level("INFO"):
        tonight = make(*publish(tmp_path / "next", second, "b"))
    assert set(asked) == {NEW, AGAIN, TWIN}
    assert files(tonight) == files(full)
    for stage in ("retrieve", "generate"):
        facts = tonight.manifest(stage)["facts"]
        assert facts["reused"] == "a" * 32
        assert facts["viewers_reused"] == 39 - 3
        assert facts["viewers_changed"] == {"gone": 1, "new ratings": 1, "new viewer": 1, "rated again": 1}
        whole = full.manifest(stage)["facts"]
        assert whole.pop("nothing_reused") == "there is no earlier output"
        assert {key: facts[key] for key in whole} == whole
        assert (
            f"{stage}: 36 users as in aaaaaaaaaa; rebuilt: 1 gone, 1 new ratings, 1 new viewer, 1 rated again"
            in caplog.messages
        )


@pytest.mark.parametrize(("turns", "at_once"), [(1, 1), (1, 1 << 20), (4, 1 << 20)])
def test_changed_viewers_of_several_buckets_may_be_asked_at_once(second, first, tmp_path, monkeypatch, turns, at_once):
    full, config = publish(tmp_path / "full", second, "b")
    run_retrieve(full, config)
    monkeypatch.setattr(candidates, "TURNS_OF_INCREMENT", turns)
    monkeypatch.setattr(candidates, "BUCKETS_AT_ONCE", 1)
    monkeypatch.setattr(buckets, "ASKED_AT_ONCE", at_once)
    shutil.copytree(first, tmp_path / "next")
    tonight, _ = publish(tmp_path / "next", second, "b")
    run_retrieve(tonight, config)
    assert len(list(tonight.folder("split").glob("shard=*"))) > 1
    assert tonight.manifest("retrieve")["facts"]["viewers_reused"] == 36
    hashes = [night.manifest("retrieve")["files"] for night in (tonight, full)]
    assert hashes[0] == hashes[1]


def write_night(folder: Path, viewers: list[tuple[str, int, int]], asked: list[tuple[str, int, str, int]]) -> Path:
    """Write the input of ``write_unchanged``: bucket, user, digest of the rows; bucket, user, purpose, cutoff."""
    for part in ("viewers", "retrieved"):
        (folder / part).mkdir(parents=True)
    for bucket in ("000", "001", "002"):
        name = f"shard-{bucket}.parquet"
        rows = [(user, 9, digest, digest) for where, user, digest in viewers if where == bucket]
        pl.DataFrame(rows, schema=VIEWERS, orient="row").write_parquet(folder / "viewers" / name)
        queries = [question for where, *question in asked if where == bucket]
        schema = {column: RETRIEVED[column] for column in QUERY_KEY}
        pl.DataFrame(queries, schema=schema, orient="row").write_parquet(folder / "retrieved" / name)
    return folder


def test_what_is_taken_over_is_asked_in_both_nights_of_viewers_whose_rows_are_the_same(tmp_path):
    before = write_night(
        tmp_path / "before",
        [("000", 1, 11), ("000", 4, 14), ("001", 2, 12), ("002", 3, 13)],
        [
            ("000", 1, "test", 7),
            ("000", 1, "train", 5),
            ("000", 4, "test", 7),
            ("001", 2, "test", 7),
            ("002", 3, "test", 7),
        ],
    )
    now = write_night(
        tmp_path / "now",
        [("000", 1, 11), ("000", 4, 99), ("001", 2, 12), ("002", 5, 15)],
        [
            ("000", 1, "test", 7),
            ("000", 1, "train", 6),
            ("000", 4, "test", 7),
            ("001", 2, "test", 7),
            ("002", 5, "test", 7),
        ],
    )
    facts = write_unchanged(before, now, tmp_path / "out")
    assert facts == {"viewers_reused": 2, "viewers_changed": {"gone": 1, "new ratings": 1, "new viewer": 1}}
    kept = {path.name: pl.read_parquet(path).rows() for path in (tmp_path / "out").iterdir()}
    assert kept == {
        "shard-000.parquet": [(1, "test", 7)],
        "shard-001.parquet": [(2, "test", 7)],
        "shard-002.parquet": [],
    }


@pytest.mark.parametrize("stage", ["retrieve", "generate"])
def test_a_night_killed_as_it_published_is_published_by_the_next_try(second, first, tmp_path, monkeypatch, stage):
    full = make(*publish(tmp_path / "full", second, "b"))
    shutil.copytree(first, tmp_path / "next")
    tonight, config = publish(tmp_path / "next", second, "b")
    work = tonight.folder(stage).with_name(f"{tonight.fingerprints[stage]}.work")
    rename = Path.rename

    def die(self: Path, target: Path) -> Path:
        if self == work:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            make(tonight, config)
    assert (work / "manifest.json").is_file()
    assert files(make(tonight, config)) == files(full)


def test_a_question_whose_pinned_fit_knows_the_answer_is_left_out_and_counted(second, first, tmp_path):
    """A film of the graph that is rated again is this run's test like; fits a and b were trained on it."""
    shutil.copytree(first, tmp_path / "next")
    tonight = make(*publish(tmp_path / "next", second, "b"))
    assert tonight.manifest("retrieve")["facts"]["left_out_known_to_fit"] == {"test": 1}
    for stage in ("retrieve/retrieved", "generate/*"):
        name, below = stage.split("/")
        asked = pl.read_parquet(tonight.folder(name) / below / "shard-*.parquet").filter(pl.col("user_id") == AGAIN)
        assert "test" not in asked["purpose"]
        assert "valid" in asked["purpose"]


def test_a_night_without_any_change_asks_nobody(world, first, tmp_path):
    shutil.copytree(first, tmp_path / "next")
    tonight = make(*publish(tmp_path / "next", world, "b"))
    facts = tonight.manifest("generate")["facts"]
    assert (facts["viewers_reused"], facts["viewers_changed"]) == (39, {})
    before = publish(tmp_path / "next", world, "a")[0]
    assert files(tonight) == files(before)


def test_other_settings_take_nothing_over(second, first, tmp_path):
    shutil.copytree(first, tmp_path / "next")
    tonight = make(*publish(tmp_path / "next", second, "b", hint_films=5))
    for stage in ("retrieve", "generate"):
        facts = tonight.manifest(stage)["facts"]
        assert "fields retrieve.hint_films: 6 -> 5" in facts["nothing_reused"]
        assert "viewers_reused" not in facts
    assert files(tonight) == files(make(*publish(tmp_path / "full", second, "b", hint_films=5)))


def changed_world(world: small_world.World, folder: Path) -> small_world.World:
    shutil.copytree(world.root, folder)
    return small_world.World(folder)


def test_other_facts_take_nothing_over_and_facts_that_nobody_weighs_do(world, second, first, tmp_path):
    named = changed_world(second, tmp_path / "named")
    entities = pl.read_parquet(named.knowledge / "entities.parquet")
    other = pl.when(pl.col("name") == "Person 3").then(pl.lit("Somebody Else")).otherwise("name")
    entities.with_columns(name=other).write_parquet(named.knowledge / "entities.parquet")
    shutil.copytree(first, tmp_path / "next")
    tonight = make(*publish(tmp_path / "next", named, "b"))
    for stage in ("retrieve", "generate"):
        assert tonight.manifest(stage)["facts"]["nothing_reused"].endswith("its knowledge has other content")

    more = changed_world(second, tmp_path / "more")
    film = {"entity_id": len(entities), "key": "movie:999", "kind": "movie", "name": "New"}
    pl.concat([entities, pl.DataFrame([film], schema=ENTITIES)]).write_parquet(more.knowledge / "entities.parquet")
    movies = pl.read_parquet(more.ingest / "movies.parquet")
    new = {"movie_id": 999, "title": "New (2026)", "year": 2026, "genres": ["Drama"]}
    pl.concat([movies, pl.DataFrame([new], schema=MOVIES)]).write_parquet(more.ingest / "movies.parquet")
    shutil.copytree(first, tmp_path / "third")
    tonight = make(*publish(tmp_path / "third", more, "b"))
    assert tonight.manifest("generate")["facts"]["viewers_reused"] == 36


def test_another_title_takes_no_prompt_over(second, first, tmp_path):
    renamed = changed_world(second, tmp_path / "renamed")
    movies = pl.read_parquet(renamed.ingest / "movies.parquet")
    title = pl.when(pl.col("movie_id") == 5).then(pl.lit("Other (1955)")).otherwise("title")
    movies.with_columns(title=title).write_parquet(renamed.ingest / "movies.parquet")
    shutil.copytree(first, tmp_path / "next")
    tonight = make(*publish(tmp_path / "next", renamed, "b"))
    assert tonight.manifest("retrieve")["facts"]["viewers_reused"] == 36
    assert tonight.manifest("generate")["facts"]["nothing_reused"].endswith("its ingest has other content")


def test_other_attributes_of_users_take_nothing_over_where_they_count(world, second, tmp_path):
    """The bytes are those of a full run, and the attributes reach the retriever."""
    outputs = []
    for number, (night, source, occupation) in enumerate(
        [("a", world, "artist"), ("b", second, "artist"), ("c", second, "lawyer")]
    ):
        there = changed_world(source, tmp_path / f"world-{number}")
        users = [
            (user, "F" if user % 2 else "M", 30, occupation if user < 20 else "other", "") for user in range(1, 42)
        ]
        pl.DataFrame(users, schema=USERS, orient="row").write_parquet(there.ingest / "users.parquet")
        outputs.append(make(*publish(tmp_path / "next", there, night, similar_people=1.0)))
        if night == "b":
            assert files(outputs[1]) == files(make(*publish(tmp_path / "full", there, "b", similar_people=1.0)))
            assert files(outputs[1]) != files(make(*publish(tmp_path / "plain", there, "b")))
    for stage in ("retrieve", "generate"):
        assert outputs[1].manifest(stage)["facts"]["viewers_reused"] == 36
        assert outputs[2].manifest(stage)["facts"]["nothing_reused"].endswith("its ingest has other content")


@pytest.mark.parametrize("stage", ["retrieve", "generate"])
def test_a_damaged_earlier_output_is_not_used(second, first, tmp_path, stage):
    shutil.copytree(first, tmp_path / "next")
    shards = sorted((tmp_path / "next" / "d" / stage).rglob("shard-000.parquet"))
    content = bytearray(shards[0].read_bytes())
    content[60] ^= 1
    shards[0].write_bytes(content)
    tonight = make(*publish(tmp_path / "next", second, "b"))
    assert "is damaged" in tonight.manifest("generate")["facts"]["nothing_reused"]
    assert files(tonight) == files(make(*publish(tmp_path / "full", second, "b")))


def test_a_digest_sees_each_column_and_no_row_after_the_last_answer(world):
    rows = small_world.read_split(world)
    before = digest_users(rows)
    assert before["user_id"].to_list() == [user for user in range(1, 41) if user != 39]
    mine = (pl.col("user_id") == 5) & (pl.col("position") == 2)
    changes = {
        "movie_id": pl.lit(999, pl.Int32),
        "rating": pl.col("rating") + 0.5,
        "timestamp": pl.col("timestamp") + 1,
        "label": pl.lit("later", SPLIT_LABELS),
        "unseen": ~pl.col("unseen"),
    }
    for name, other in changes.items():
        after = digest_users(rows.with_columns(pl.when(mine).then(other).otherwise(name).alias(name)))
        assert after.filter(pl.col("rows") != before["rows"])["user_id"].to_list() == [5], name
        assert (after["films"] != before["films"]).any() == (name == "movie_id")
    swapped = pl.col("position").replace({2: 3, 3: 2})
    turned = rows.with_columns(position=pl.when(pl.col("user_id") == 5).then(swapped).otherwise("position"))
    assert digest_users(turned).filter(pl.col("rows") != before["rows"])["user_id"].to_list() == [5]
    late = add(small_world.read_split(world), 5, 59, 1.0, "other")
    assert digest_users(late).equals(before)
