"""Shards as jobs: pickling, loading once, reuse from an earlier run, leftovers of a lost writer."""

from __future__ import annotations

import pickle
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import small_world
from test_engine import PURPOSES, SEED, SPECIALISTS, retrieve

from tripletune.config import PromptConfig, RetrieveConfig, RunConfig, WorkersConfig
from tripletune.errors import ConfigError, InputError
from tripletune.pipeline.resolve import resolve
from tripletune.prompts import made_with, shards
from tripletune.prompts.engine import Frame
from tripletune.prompts.shards import generate_shards, one_after_the_other, write_shard
from tripletune.schemas.query import QUERY_KEY

RETRIEVE = RetrieveConfig(retriever="lightgcn")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    retrieve(world, RETRIEVE)
    return world


@pytest.fixture(scope="module")
def out(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    generate(world, folder)
    return folder


def generate(world, out, prompt=None, **options):
    out.mkdir(exist_ok=True)
    return generate_shards(
        *(world.ingest, world.split, world.retrieve, out, prompt or PromptConfig(), RETRIEVE),
        dislike=3.0,
        specialists=SPECIALISTS,
        seed=SEED,
        **options,
    )


def files(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def jobs_of(world, out):
    planned = []
    with pytest.raises(InputError):  # nobody writes them
        generate(world, out, map_jobs=lambda write, jobs: planned.extend(jobs))
    return planned


def test_a_job_is_a_few_words_that_another_process_understands(world, tmp_path):
    for job in jobs_of(world, tmp_path):
        letter = pickle.dumps(job)
        assert len(letter) < 2000
        assert pickle.loads(letter) == job  # noqa: S301 - our own, just written


def test_a_job_says_where_things_are_to_a_worker_that_started_in_another_folder(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near").mkdir()
    for job in jobs_of(world, Path("near")):
        paths = (job.recipe.ingest, job.split, job.retrieve, job.out)
        assert all(path.is_absolute() for path in paths)


def test_a_worker_that_loaded_other_code_writes_nothing(world, tmp_path, monkeypatch):
    jobs = jobs_of(world, tmp_path)
    shards._shared_frame.cache_clear()
    monkeypatch.setattr(made_with, "_SOURCE", "what an older checkout had")
    with pytest.raises(ConfigError, match="a worker runs other code"):
        shards.write_shard(jobs[0])
    assert not files(tmp_path)


MINE = "---\nid: mine\nbase: hints-first\n---\n[system]\n{}\n"


def test_a_template_of_ones_own_travels_by_its_whole_path_and_its_content(world, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text(MINE.format("Hello."))
    monkeypatch.chdir(tmp_path)
    out, given = tmp_path / "out", []

    def map_jobs(write, jobs):
        given.extend(jobs)
        monkeypatch.chdir(world.root)
        one_after_the_other(write, jobs)

    generate(world, out, PromptConfig(template="mine.txt"), map_jobs=map_jobs)
    assert set(pl.read_parquet(out / "*" / "*.parquet")["template_id"]) == {"mine"}
    (tmp_path / "mine.txt").write_text(MINE.format("Good day."))
    (out / "test" / "shard-000.parquet").unlink()
    with pytest.raises(ConfigError, match=r"mine\.txt' has other contents on a worker than in this run"):
        write_shard(given[0])


def test_who_writes_the_shards_is_in_no_fingerprint(tmp_path):
    config = RunConfig(dataset="made-up")
    others = config.model_copy(update={"workers": WorkersConfig(kind="dask", count=7)})
    assert resolve(others, tmp_path).fingerprints == resolve(config, tmp_path).fingerprints


@pytest.mark.bytes
def test_jobs_in_any_order_give_the_same_bytes_and_a_process_loads_what_they_share_once(
    world, out, tmp_path, monkeypatch
):
    loaded = []
    load = Frame.load
    monkeypatch.setattr(Frame, "load", lambda *given: loaded.append(given) or load(*given))
    generate(world, tmp_path, map_jobs=lambda write, jobs: one_after_the_other(write, jobs[::-1]))
    assert files(tmp_path) == files(out)
    assert len(loaded) == 1


def test_only_what_is_missing_is_given_to_the_workers(world, out, tmp_path):
    generate(world, tmp_path)
    (tmp_path / "valid" / "shard-001.parquet").unlink()
    asked = []

    def map_jobs(write, jobs):
        asked.extend(job.number for job in jobs)
        one_after_the_other(write, jobs)

    generate(world, tmp_path, map_jobs=map_jobs)
    assert asked == ["001"]
    generate(world, tmp_path, map_jobs=map_jobs)
    assert asked == ["001"]
    assert files(tmp_path) == files(out)


def test_workers_that_write_to_another_disk_are_noticed(world, tmp_path):
    with pytest.raises(InputError, match=r"2 of 2 shards are not in .*--artifacts on a disk that .* all workers share"):
        generate(world, tmp_path, map_jobs=lambda write, jobs: None)


def test_two_writers_of_one_shard_do_not_meet_in_its_temporary_file(world, out, tmp_path, monkeypatch):
    write = pl.DataFrame.write_parquet

    def overtaken(frame, path, **options):
        monkeypatch.setattr(pl.DataFrame, "write_parquet", write)
        write(frame, path, **options)
        for job in jobs_of(world, tmp_path):
            write_shard(job)  # another worker writes the same shard and finishes first
        assert path.exists()

    monkeypatch.setattr(pl.DataFrame, "write_parquet", overtaken)
    generate(world, tmp_path)
    assert files(tmp_path) == files(out)


def test_what_a_lost_writer_left_is_removed(world, out, tmp_path):
    def map_jobs(write, jobs):
        (tmp_path / "test" / ".shard-000.parquet.0123abcd.part").write_bytes(b"PAR1")
        one_after_the_other(write, jobs)

    generate(world, tmp_path, map_jobs=map_jobs)
    assert files(tmp_path) == files(out)


def write_unchanged(out, folder, wanted):
    """For each bucket the queries of ``out`` that fulfil ``wanted``."""
    folder.mkdir()
    for name in ("shard-000.parquet", "shard-001.parquet"):
        rows = pl.concat(pl.read_parquet(out / purpose / name) for purpose in PURPOSES)
        rows.filter(wanted).select(QUERY_KEY).write_parquet(folder / name)
    return folder


@pytest.mark.parametrize("wanted", [pl.col("user_id") % 3 > 0, pl.lit(True), pl.lit(False)])
def test_rows_that_an_earlier_night_has_make_the_same_shards(world, out, tmp_path, wanted):
    unchanged = write_unchanged(out, tmp_path / "unchanged", wanted)
    facts = generate(world, tmp_path / "out", previous=out, unchanged=unchanged)
    assert files(tmp_path / "out") == files(out)
    assert facts == generate(world, tmp_path / "out")


def count_groups(path):
    return pq.read_metadata(path).num_row_groups


@pytest.mark.parametrize("wanted", [pl.col("user_id") % 3 > 0, pl.lit(True), pl.lit(False)])
def test_shards_of_several_row_groups_know_nothing_of_what_was_rendered(world, tmp_path, monkeypatch, wanted):
    monkeypatch.setattr(shards, "ROW_GROUP", 4)
    full = tmp_path / "full"
    generate(world, full)
    for path in full.rglob("*.parquet"):
        examples = pl.read_parquet(path)
        assert count_groups(path) == max(1, -(-len(examples) // 4))
        assert examples.equals(examples.sort(QUERY_KEY))
    unchanged = write_unchanged(full, tmp_path / "unchanged", wanted)
    generate(world, tmp_path / "out", previous=full, unchanged=unchanged)
    assert files(tmp_path / "out") == files(full)


def plan(world, folder, out, wanted):
    """The buckets of each job of an increment."""
    planned = []
    unchanged = write_unchanged(out, folder / "unchanged", wanted)
    with pytest.raises(InputError):  # nobody writes them
        generate(
            world,
            folder / "out",
            previous=out,
            unchanged=unchanged,
            map_jobs=lambda write, jobs: planned.extend(job.numbers for job in jobs),
        )
    return planned


def test_buckets_go_together_into_a_job_as_long_as_they_render_no_more_than_a_row_group(
    world, out, tmp_path, monkeypatch
):
    assert [job.numbers for job in jobs_of(world, tmp_path)] == [("000",), ("001",)]
    few = pl.col("user_id") > 4
    kept = pl.concat(pl.read_parquet(path) for path in out.rglob("*.parquet")).filter(few)
    asked = pl.read_parquet(world.retrieve / "retrieved" / "*.parquet").height - kept.height
    for room, most, jobs in ((asked, 8, 1), (asked - 1, 8, 2), (asked, 1, 2)):
        folder = tmp_path / f"{room}-{most}"
        folder.mkdir()
        monkeypatch.setattr(shards, "ROW_GROUP", room)
        monkeypatch.setattr(shards, "TOGETHER", most)
        planned = plan(world, folder, out, few)
        assert [number for numbers in planned for number in numbers] == ["000", "001"]
        assert len(planned) == jobs


def test_a_job_of_several_buckets_goes_on_at_the_shard_that_is_not_there(world, out, tmp_path):
    unchanged = write_unchanged(out, tmp_path / "unchanged", pl.col("user_id") > 4)
    again = {"previous": out, "unchanged": unchanged}
    generate(world, tmp_path / "out", **again)
    lost = tmp_path / "out" / "valid" / "shard-001.parquet"
    lost.unlink()
    there = {path: path.stat().st_ino for path in (tmp_path / "out").rglob("*.parquet")}
    generate(world, tmp_path / "out", **again)
    assert {path: path.stat().st_ino for path in there} == there
    assert files(tmp_path / "out") == files(out)


def test_the_mean_number_of_characters_is_that_of_the_written_prompts(world, out, tmp_path):
    facts = generate(world, tmp_path)
    prompts = [prompt for path in out.rglob("*.parquet") for prompt in pl.read_parquet(path)["prompt"].to_list()]
    chars = sum(len(message["content"]) for prompt in prompts for message in prompt)
    assert facts["mean_prompt_chars"] == round(chars / len(prompts), 1)


def test_unchanged_rows_are_copied_and_not_rendered(world, out, tmp_path, monkeypatch):
    unchanged = write_unchanged(out, tmp_path / "unchanged", pl.col("user_id") > 4)
    rendered = []
    build = shards.build_examples
    monkeypatch.setattr(
        shards, "build_examples", lambda retrieved, *rest: rendered.append(retrieved) or build(retrieved, *rest)
    )
    generate(world, tmp_path / "out", previous=out, unchanged=unchanged)
    copied = pl.concat(pl.read_parquet(path) for path in unchanged.glob("*.parquet"))
    assert pl.concat(rendered).join(copied, on=QUERY_KEY, how="semi").is_empty()
    assert set(pl.concat(rendered)["user_id"]) >= {1, 2, 3, 4}
