"""Pieces of the ranking are claimed, answered once and waited for; processes get a GPU each."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import polars as pl
import pytest
from filelock import FileLock

from tripletune.config import RankConfig
from tripletune.errors import ConfigError
from tripletune.processes.supervise import ProcessFailed
from tripletune.rank.pieces import Answered, Pass, Piece, answer_pieces, passes_of
from tripletune.rank.workers.launch import _explain, visible_gpus, worker_environments

CLOSED = -1


class Slow:
    """Answers nothing, slowly, and keeps count."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen

    def answer(self, examples: pl.DataFrame, *, constrained: bool, batch_size: int) -> pl.DataFrame:
        time.sleep(0.02)
        self.seen.append(examples["user_id"][0])
        return examples.select("user_id", num_tokens=pl.lit(3))

    def close(self) -> None:
        self.seen.append(CLOSED)


@pytest.fixture
def pieces(tmp_path: Path) -> list[Piece]:
    ways = [Pass(purpose="test", tuned=tuned, constrained=True) for tuned in (True, False)]
    return [
        Piece(
            ways[number // 4],
            tmp_path / f"{number}.parquet",
            pl.LazyFrame({"user_id": [number], "purpose": ["test"], "cutoff": [1]}),
        )
        for number in range(8)
    ]


def answer(pieces: list[Piece], seen: list[int], took: list[Answered], loaded: list[str]) -> None:
    def load(way: Pass) -> Slow:
        loaded.append(way.system)
        return Slow(seen)

    answer_pieces(pieces, load, 2, took.append)


def test_one_process_answers_each_piece_and_loads_each_model_once(pieces: list[Piece]) -> None:
    seen: list[int] = []
    took: list[Answered] = []
    loaded: list[str] = []
    pieces[2].target.touch()
    answer(pieces, seen, took, loaded)
    assert seen == [0, 1, 3, CLOSED, 4, 5, 6, 7, CLOSED]
    assert loaded == ["tuned", "untuned"]
    assert sum(one.tokens for one in took) == 3 * 7


def test_several_share_the_pieces_and_answer_each_once(pieces: list[Piece]) -> None:
    """Threads stand for processes: a lock belongs to whoever opened its file."""
    shares: list[list[int]] = [[], [], []]
    threads = [threading.Thread(target=answer, args=(pieces, share, [], [])) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for share in shares for number in share if number != CLOSED) == list(range(8))
    assert all(shares)


def test_a_piece_that_another_holds_is_left_and_taken_when_that_one_is_gone(pieces: list[Piece]) -> None:
    seen: list[int] = []
    lock = FileLock(pieces[1].target.with_suffix(".lock"))
    lock.acquire()
    thread = threading.Thread(target=answer, args=(pieces, seen, [], []))
    thread.start()
    thread.join(1.0)
    assert thread.is_alive()
    assert seen == [0, 2, 3, CLOSED, 4, 5, 6, 7]
    lock.release(force=True)
    thread.join()
    assert seen[-3:] == [CLOSED, 1, CLOSED]


def test_a_piece_that_another_finished_meanwhile_is_not_answered_again(pieces: list[Piece]) -> None:
    """As it is claimed, not only as the pieces are listed."""
    seen: list[int] = []

    class Finishing(Slow):
        def answer(self, examples: pl.DataFrame, *, constrained: bool, batch_size: int) -> pl.DataFrame:
            pieces[3].target.touch()
            return super().answer(examples, constrained=constrained, batch_size=batch_size)

    answer_pieces(pieces, lambda way: Finishing(seen), 2, lambda took: None)
    assert seen == [0, 1, 2, CLOSED, 4, 5, 6, 7, CLOSED]


def test_a_model_is_closed_where_answering_fails(pieces: list[Piece]) -> None:
    seen: list[int] = []

    class Failing(Slow):
        def answer(self, examples: pl.DataFrame, *, constrained: bool, batch_size: int) -> pl.DataFrame:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        answer_pieces(pieces, lambda way: Failing(seen), 2, lambda took: None)
    assert seen == [CLOSED]


@pytest.mark.parametrize(
    ("workers", "gpus", "devices"),
    [
        ("auto", [], [""]),
        ("auto", ["0", "1", "2"], ["0", "1", "2"]),
        ("auto", ["GPU-5e", "3"], ["GPU-5e", "3"]),
        (2, ["4", "5", "6"], ["4", "5"]),
        (1, ["4", "5"], ["4"]),
        (4, [], ["", "", "", ""]),
    ],
)
def test_each_process_has_a_gpu_of_its_own(workers: int | str, gpus: list[str], devices: list[str]) -> None:
    assert [one["CUDA_VISIBLE_DEVICES"] for one in worker_environments(workers, gpus)] == devices


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rank\.workers = 3, but 2 GPUs can be seen.*'auto' or to at most 2"):
        worker_environments(3, ["0", "1"])


@pytest.mark.parametrize(("visible", "found"), [(None, ["0", "1"]), ("6, 2", ["6", "2"]), ("6,-1,2", ["6"])])
def test_gpus_are_named_as_the_environment_names_them(
    visible: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(found))
    assert visible_gpus() == found


@pytest.mark.parametrize(
    ("tuned", "constrained", "users"), [(True, True, 50), (False, True, 20), (True, False, 30), (False, False, 20)]
)
def test_a_pass_answers_for_the_users_that_its_settings_name(tuned: bool, constrained: bool, users: int) -> None:
    way = Pass(purpose="test", tuned=tuned, constrained=constrained)
    settings = RankConfig(untuned_viewers=20, unconstrained_viewers=30)
    assert way.num_users(settings, 50) == users
    assert way.num_users(settings, 10) == 10
    everyone = RankConfig(unconstrained_viewers=100)
    assert way.num_users(everyone, 50) == 50


def test_each_format_of_the_weights_is_a_system_that_ranks_its_own_part_of_the_users() -> None:
    settings = RankConfig(quantized=("nf4", "int8"), quantized_viewers=7, untuned_viewers=20)
    assert passes_of(RankConfig()) == passes_of(settings)[:6]
    rounded = passes_of(settings)[6:]
    assert [way.name for way in rounded] == [
        *("valid-tuned-nf4-constrained", "test-tuned-nf4-constrained"),
        *("valid-tuned-int8-constrained", "test-tuned-int8-constrained"),
    ]
    assert [way.num_users(settings, 50) for way in rounded] == [7] * 4
    assert rounded[0].num_users(RankConfig(quantized=("nf4",)), 50) == 50
    assert Pass(purpose="test", tuned=True, constrained=True).num_users(settings, 50) == 50


def test_the_last_lines_of_processes_that_died_are_shown() -> None:
    died = [{"kind": "died", "worker": number, "code": -9, "left": 1 - number} for number in (0, 1)]
    error = _explain(ProcessFailed("exit code 1", ["Traceback", "out of memory"]), died, 2)
    assert str(error).startswith("all 2 ranking processes died (exit codes -9, -9); run again")
    assert str(error).endswith("\n  Traceback\n  out of memory")
