"""Token files written by several processes: the same bytes, the same errors, and none of them left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing.context import SpawnProcess
from pathlib import Path

import polars as pl
import psutil
import pytest

from tests.finetune_shards import write_shards
from tests.flows.test_finetune_processes import gone
from tripletune.config import FinetuneConfig, TinyLlamaConfig
from tripletune.errors import TrainingCrash, TrainingError
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.tiny import write_tiny_llama
from tripletune.finetune.token_files import TRAIN, write_token_files
from tripletune.store.fingerprint import sha256_file

TINY = TinyLlamaConfig(vocab_size=400, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A job with examples in five files."""
    folder = tmp_path_factory.mktemp("world")
    shards = write_shards(folder / "shards", train=23, valid=2, test=1, long=False, letters=True, files=5)
    files = tuple(sorted((shards / "train").glob("*.parquet")))
    write_tiny_llama(files, folder / "base", TINY, seed=1)
    return TrainingJob(
        out=folder,
        train=files,
        evaluation=None,
        answer_style="letters",
        base=str(folder / "base"),
        hub_revision=None,
        base_name="tiny",
        settings=FinetuneConfig(objective="listwise"),
        seed=5,
    )


def test_one_and_two_processes_write_the_same_bytes(world: TrainingJob, tmp_path: Path) -> None:
    made = []
    for workers in (1, 2):
        job = world.model_copy(update={"out": tmp_path / str(workers)})
        write_token_files(job, workers)
        files = sorted((job.tokens / TRAIN).iterdir())
        made.append({path.name: sha256_file(path) for path in files})
    assert len(made[0]) == 5 + 1
    assert made[0] == made[1]


def test_the_first_error_of_a_process_is_that_of_the_examples_order(world: TrainingJob, tmp_path: Path) -> None:
    files = []
    for number, source in enumerate(world.train):
        rows = pl.read_parquet(source)
        if number in (1, 3):
            rows = rows.with_columns(answers=pl.lit([9999], pl.List(pl.Int32)))
        files.append(tmp_path / source.name)
        rows.write_parquet(files[-1])
    name = pl.read_parquet(files[1])["example_id"][0]
    with pytest.raises(TrainingError, match=rf"^the example {name} has no answer among its candidates"):
        write_token_files(world.model_copy(update={"out": tmp_path, "train": tuple(files)}), 2)


def test_a_killed_process_is_told_in_one_line_and_the_next_try_goes_on(world: TrainingJob, tmp_path: Path) -> None:
    def kill_one() -> None:
        me, end = psutil.Process(), time.monotonic() + 60
        while time.monotonic() < end:
            for child in me.children():
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()
                    return
            time.sleep(0.01)

    job = world.model_copy(update={"out": tmp_path})
    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(TrainingCrash, match="a process that tokenises was killed, most often for want of memory") as e:
        write_token_files(job, 2)
    killer.join()
    assert "\n" not in str(e.value)
    write_token_files(job, 1)
    assert len(list((job.tokens / TRAIN).glob("*.arrow"))) == 5


def test_a_process_killed_while_another_starts_is_told_too(
    world: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool of two breaks then in mid-start: it would wait for the second for ever, or close what it is handed."""
    started: list[SpawnProcess] = []
    real_start = SpawnProcess.start

    def start(process: SpawnProcess) -> None:
        if started:
            started[0].kill()
            time.sleep(1)
        real_start(process)
        started.append(process)

    monkeypatch.setattr(SpawnProcess, "start", start)
    with pytest.raises(TrainingCrash, match="a process that tokenises was killed"):
        write_token_files(world.model_copy(update={"out": tmp_path}), 2)
    assert len(started) == 2
    assert not any(process.is_alive() for process in started)


def test_a_stage_killed_outright_leaves_none_of_them(world: TrainingJob, tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        from tripletune.finetune.job import TrainingJob
        from tripletune.finetune.token_files import write_token_files
        job = TrainingJob.model_validate_json({world.model_dump_json()!r})
        write_token_files(job.model_copy(update={{"out": job.out / "killed"}}), 2)
        """
    )
    stage = subprocess.Popen([sys.executable, "-c", script], env=os.environ)
    end = time.monotonic() + 120
    children: list[int] = []
    while len(children) < 2 and time.monotonic() < end:
        found = psutil.Process(stage.pid).children()
        children = [child.pid for child in found if "spawn_main" in " ".join(child.cmdline())]
        time.sleep(0.02)
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    assert len(children) == 2
    assert all(gone(pid, timeout=60) for pid in children)
