"""Ranking in several processes gives the predictions of one, whichever of them dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.finetune_shards import LETTERS_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS
from tests.flows.test_finetune_processes import gone
from tripletune.config import RankConfig
from tripletune.errors import NonFiniteError, RankingCrash
from tripletune.finetune.launch import finetune_adapter
from tripletune.rank.predict import rank_shards
from tripletune.store.fingerprint import sha256_file
from tripletune.store.paths import SCRATCH

RANK = RankConfig(batch_size=5, unconstrained_viewers=40, untuned_viewers=150)
NUM_PIECES = 3 + 3 + 1 + 2 + 2 + 1
"""Of 128 users each: 300 users of both purposes tuned, 150 untuned, 40 of test without constraint."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards and an adapter."""
    folder = tmp_path_factory.mktemp("world")
    shards = write_shards(folder / "shards", train=12, valid=300, test=300, long=False, letters=True)
    (folder / "adapter").mkdir()
    changes = {"objective": "listwise", "num_train_epochs": 1.0, "max_eval_examples": 4, "max_select_examples": 8}
    finetune_adapter(shards, folder / "adapter", SETTINGS.model_copy(update=changes), LETTERS_CONTRACT, {}, 0)
    return shards, folder / "adapter"


def rank(world: tuple[Path, Path], out: Path, workers: int) -> str:
    """SHA-256 of the predictions."""
    out.mkdir(exist_ok=True)
    facts = rank_shards(*world, out, RANK.model_copy(update={"workers": workers}), LETTERS_CONTRACT, 0)
    assert facts["workers"] == workers
    return sha256_file(out / "predictions.parquet")


@pytest.fixture(scope="module")
def alone(world: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return rank(world, tmp_path_factory.mktemp("alone"), 1)


def pieces(out: Path) -> dict[str, float]:
    """When each piece that is done was written."""
    return {path.name: path.stat().st_mtime for path in (out / SCRATCH / "pieces").glob("*.parquet")}


def processes_of(out: Path) -> list[psutil.Process]:
    """The ranking processes of a run, by their job's file."""
    job, found = str(out / SCRATCH / "job.json"), []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if job in words and "tripletune.rank.workers.worker" in words:
            found.append(process)
    return found


def watch(out: Path, act: Callable[[list[psutil.Process]], bool]) -> threading.Thread:
    """Call ``act`` with the processes of a run, from the first piece on, until it says that it has acted."""

    def look() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if pieces(out) and act(processes_of(out)):
                return
            time.sleep(0.005)

    thread = threading.Thread(target=look)
    thread.start()
    return thread


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_write_the_predictions_of_one(
    world: tuple[Path, Path], alone: str, tmp_path: Path, workers: int
) -> None:
    assert rank(world, tmp_path, workers) == alone
    assert len(pieces(tmp_path)) == NUM_PIECES


def test_a_process_that_is_killed_costs_its_piece_and_no_answer(
    world: tuple[Path, Path], alone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[int] = []

    def kill_one(running: list[psutil.Process]) -> bool:
        if len(running) == 2:
            running[0].kill()
            killed.append(running[0].pid)
        return bool(killed)

    thread = watch(tmp_path, kill_one)
    assert rank(world, tmp_path, 2) == alone
    thread.join()
    assert killed
    assert "ended with code -9; 1 go on" in caplog.text


def test_when_all_are_killed_the_stage_says_so_and_the_next_run_keeps_the_pieces(
    world: tuple[Path, Path], alone: str, tmp_path: Path
) -> None:
    def kill_all(running: list[psutil.Process]) -> bool:
        for process in running:
            process.kill()
        return len(running) == 2

    thread = watch(tmp_path, kill_all)
    with pytest.raises(RankingCrash, match=r"all 2 ranking processes died \(exit codes -9, -9\); run again") as caught:
        rank(world, tmp_path, 2)
    thread.join()
    assert "the last lines were:" in str(caught.value)
    assert not (tmp_path / "predictions.parquet").exists()
    kept = pieces(tmp_path)
    assert 0 < len(kept) < NUM_PIECES
    assert rank(world, tmp_path, 2) == alone
    assert {name: pieces(tmp_path)[name] for name in kept} == kept


def test_a_stage_killed_outright_leaves_no_ranking_process(world: tuple[Path, Path], tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from tripletune.config import RankConfig
        from tripletune.rank.predict import rank_shards
        settings = RankConfig.model_validate_json({RANK.model_copy(update={"workers": 2}).model_dump_json()!r})
        shards, adapter = map(Path, {[str(path) for path in world]!r})
        rank_shards(shards, adapter, Path({str(tmp_path)!r}), settings, {LETTERS_CONTRACT!r}, 0)
        """
    )
    stage = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    found: list[psutil.Process] = []

    def kill_the_stage(running: list[psutil.Process]) -> bool:
        if len(running) == 2:
            found.extend(running)
            stage.send_signal(signal.SIGKILL)
        return bool(found)

    watch(tmp_path, kill_the_stage).join()
    assert stage.wait() == -signal.SIGKILL
    assert len(found) == 2
    assert all(gone(process.pid) for process in found)


def test_an_error_of_the_users_ends_all_processes_and_keeps_its_type(world: tuple[Path, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(world[1], tmp_path / "broken")
    weights = load_file(broken / "adapter" / "adapter_model.safetensors")
    weights[min(weights)][0, 0] = torch.nan
    save_file(weights, broken / "adapter" / "adapter_model.safetensors")
    with pytest.raises(NonFiniteError, match=r"the weight \S+ is NaN or infinite") as caught:
        rank((world[0], broken), tmp_path / "rank", 2)
    assert "\n" not in str(caught.value)
    assert not processes_of(tmp_path / "rank")


def test_the_untuned_model_ranks_the_first_of_the_users(world: tuple[Path, Path], alone: str, tmp_path: Path) -> None:
    rank(world, tmp_path, 1)
    rows = pl.read_parquet(tmp_path / "predictions.parquet").filter("constrained")
    counts = dict(rows.filter(purpose="test").group_by("system").len().iter_rows())
    assert counts == {"random": 300, "retriever": 300, "tuned": 300, "tuned+retriever": 300, "untuned": 150}
    users = {system: set(rows.filter(system=system)["user_id"]) for system in ("tuned", "untuned")}
    assert users["untuned"] < users["tuned"]
