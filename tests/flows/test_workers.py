"""The engine over workers: the same bytes with any number of workers and with workers killed."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from tasks.session import require_workers
from tasks.workers import map_shards
from tests.flows.conftest import ROOT, TRIPLETUNE, MicroRun
from tests.flows.test_run import UP_TO_RETRIEVE, copy_upstream
from tests.unit import small_world
from tripletune.config import PromptConfig, RetrieveConfig, WorkersConfig
from tripletune.errors import ConfigError, InputError
from tripletune.prompts import shards
from tripletune.prompts.shards import MapJobs, ShardJob, WriteShard, generate_shards, write_shard
from tripletune.retrieve.candidates import retrieve_all
from tripletune.store.paths import RunPaths

BUCKETS = 8
RETRIEVE = RetrieveConfig(retriever="lightgcn")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> small_world.World:
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    rows = small_world.read_split(world)
    for bucket in range(BUCKETS):
        folder = world.split / f"shard={bucket:03d}"
        folder.mkdir(exist_ok=True)
        rows.filter(pl.col("user_id") % BUCKETS == bucket).write_parquet(folder / "part.parquet")
    stages = (world.split, world.knowledge, world.specialists, world.retrieve)
    retrieve_all(*stages, RETRIEVE, num_liked_triples=5, seed=small_world.SEED)
    return world


def generate(world: small_world.World, out: Path, **options: MapJobs) -> dict[str, str]:
    """Make the shards; their SHA-256 by name."""
    out.mkdir(exist_ok=True)
    generate_shards(
        *(world.ingest, world.split, world.retrieve, out, PromptConfig(), RETRIEVE),
        dislike=3.0,
        specialists={"lightgcn": "l" * 32, "rgat": "r" * 32},
        seed=small_world.SEED,
        **options,
    )
    assert not list(out.rglob("*.part"))
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def undisturbed(world: small_world.World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    written = generate(world, tmp_path_factory.mktemp("undisturbed"))
    assert sum(name.endswith(".parquet") for name in written) == 3 * BUCKETS
    return written


@pytest.fixture(scope="module")
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@flow(validate_parameters=False)
def night(stages: Path, out: Path, workers: WorkersConfig, write: WriteShard | None = None) -> dict[str, str]:
    """The engine inside a flow; ``write`` in place of its own function."""
    return generate(small_world.World(stages), out, map_jobs=lambda own, jobs: map_shards(workers, write or own, jobs))


def slow(*case: object) -> object:
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *(("threads", 1), ("threads", 2), ("threads", 4), ("processes", 2)),
        *(slow(kind, count) for kind in ("processes", "dask", "ray") for count in (1, 4)),
        slow("ray", 2),
    ],
)
def test_the_bytes_do_not_depend_on_who_writes_them(prefect_server, world, undisturbed, tmp_path, kind, count):
    assert night(world.root, tmp_path, WorkersConfig(kind=kind, count=count)) == undisturbed


def refuse(job: ShardJob) -> None:
    raise InputError("ratings.csv, line 3: no number; correct it")


@pytest.mark.parametrize("kind", ["threads", slow("processes"), slow("dask"), slow("ray")])
def test_what_the_user_has_to_repair_comes_out_of_a_worker_as_one_line(prefect_server, world, tmp_path, capfd, kind):
    with pytest.raises(InputError, match=r"^ratings.csv, line 3: no number; correct it$"):
        night(world.root, tmp_path, WorkersConfig(kind=kind, count=2), refuse)
    told = capfd.readouterr()
    before_the_flow_fails = (told.out + told.err).split("Encountered an exception during execution")[0]
    assert "Traceback" not in before_the_flow_fails


def write_and_die_once(job: ShardJob, *, died: Path) -> None:
    """Write the shard, but the first worker that comes to number 003 is killed with half of it written."""
    if job.number == "003" and not died.exists():

        def die(path: Path, frame: pl.DataFrame, **options: Any) -> None:
            path.with_name(f".{path.name}.0123abcd.part").write_bytes(b"PAR1 and no more")
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

        shards.write_parquet = die  # in the worker, which is killed with it
    write_shard(job)


def test_a_killed_dask_workers_shards_are_written_by_the_others(prefect_server, world, undisturbed, tmp_path):
    write = functools.partial(write_and_die_once, died=tmp_path / "died")
    assert night(world.root, tmp_path / "out", WorkersConfig(kind="dask", count=2), write) == undisturbed
    assert (tmp_path / "died").exists()


def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[ray\]'"):
        require_workers(WorkersConfig(kind="ray"))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "127.0.0.1:{port}", "nowhere", "tcp://[::1"])
def test_a_cluster_that_does_not_answer_is_named_before_anything_trains(address):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but not listening
        settings = WorkersConfig(kind="dask", address=address.format(port=nobody.getsockname()[1]))
        with pytest.raises(ConfigError, match=r"^workers.address = .*: no dask cluster answers there .*"):
            require_workers(settings)


def test_workers_elsewhere_need_a_prefect_server_that_they_reach(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *where, **options: socket.socket())
    settings = WorkersConfig(kind="dask", address="tcp://10.0.0.7:8786")
    with pytest.raises(ConfigError, match="its workers cannot reach the Prefect server of this one; set PREFECT_API"):
        require_workers(settings)
    with temporary_settings({PREFECT_API_URL: "http://10.0.0.1:4200/api"}):
        require_workers(settings)


def start_generate(micro: MicroRun, root: Path) -> subprocess.Popen[bytes]:
    command = [str(TRIPLETUNE), "generate", "--config", str(micro.config), "--artifacts", str(root)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def files_of(paths: RunPaths) -> dict[str, str]:
    return {name: file["sha256"] for name, file in paths.manifest("generate")["files"].items()}


def unfinished(paths: RunPaths) -> list[Path]:
    every = paths.folder("generate").parent.rglob("*")
    return [path for path in every if path.name.endswith(".part") or path.suffix == ".work"]


def test_two_runs_at_once_end_well_with_one_set_of_shards(micro, tmp_path):
    copy_upstream(micro, tmp_path, UP_TO_RETRIEVE)
    paths = micro.record.paths(tmp_path)
    both = [start_generate(micro, tmp_path) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    assert [path.name for path in paths.folder("generate").parent.iterdir() if path.is_dir()] == [
        paths.fingerprints["generate"]
    ]
    assert files_of(paths) == files_of(micro.paths)
    assert not unfinished(paths)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_twenty_random_moments_and_run_again_it_leaves_the_same_shards(micro, tmp_path):
    copy_upstream(micro, tmp_path, UP_TO_RETRIEVE)
    paths = micro.record.paths(tmp_path)
    folder = paths.folder("generate")
    work = folder.with_name(f"{folder.name}.work")
    seconds = _seconds_at_work(start_generate(micro, tmp_path), work)
    wanted = files_of(paths)
    assert wanted == files_of(micro.paths)
    random, killed, unfinished_work = np.random.default_rng(5), 0, 0
    for moment in random.uniform(0.0, seconds, size=20):
        shutil.rmtree(folder)
        process = start_generate(micro, tmp_path)
        _wait_for(process, work)
        time.sleep(moment)
        killed += process.poll() is None
        process.kill()
        process.wait()
        unfinished_work += work.exists()
        assert start_generate(micro, tmp_path).wait(timeout=300) == 0
        assert files_of(paths) == wanted
        assert not unfinished(paths)
    print(f"killed {killed} of 20 within {seconds:.2f} s of work, {unfinished_work} before publishing")
    assert unfinished_work


def _wait_for(process: subprocess.Popen[bytes], folder: Path) -> None:
    while not folder.exists():
        assert process.poll() is None, "it ended without a work folder"
        time.sleep(0.002)


def _seconds_at_work(process: subprocess.Popen[bytes], work: Path) -> float:
    """From the work folder's appearance until it is published."""
    _wait_for(process, work)
    started = time.perf_counter()
    while work.exists():
        time.sleep(0.002)
    seconds = time.perf_counter() - started
    assert process.wait(timeout=300) == 0
    return seconds
