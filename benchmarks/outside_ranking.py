"""Rank with the scores of a model of another library as tripletune ranks, and keep the curve and the best lists.

Imported by ``recbole_side.py`` and ``rectools_side.py``, which run in environments without tripletune.
"""

# Shape letters in this file: U queries, V queries of a block, M films in the order in which ties fall, S rated rows
from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 20
TOP = 10
BLOCK = 256


@dataclass(frozen=True)
class Questions:
    """Queries to rank films for: films as columns of the catalogue; histories as film ids, oldest first."""

    users: Any
    answer_U: Any
    seen_row_S: Any
    seen_column_S: Any
    histories: list[Any]
    times: list[Any]
    """Seconds of the likes in ``histories``."""
    request_time_U: Any
    """Seconds of the answers: no model may read it, unless it says so."""


def read_questions(path: Path, purpose: str, film_ids_M: Any) -> Questions:
    """Queries of one purpose, sorted by user."""
    stored = np.load(path)
    order = np.argsort(film_ids_M)

    def columns(movies: Any) -> Any:
        return order[np.searchsorted(film_ids_M, movies, sorter=order)]

    ends = np.cumsum(np.bincount(stored[f"{purpose}_history_row"], minlength=len(stored[f"{purpose}_user"])))
    return Questions(
        stored[f"{purpose}_user"],
        columns(stored[f"{purpose}_answer"]),
        stored[f"{purpose}_seen_row"],
        columns(stored[f"{purpose}_seen_movie"]),
        np.split(stored[f"{purpose}_history_movie"], ends[:-1]),
        np.split(stored[f"{purpose}_history_time"], ends[:-1]),
        stored[f"{purpose}_answer_time"],
    )


Score = Callable[[Questions, int, int], Any]
"""From queries and a range of them to float64 scores (V, M) of all films; -inf where a model does not know the film."""


class Judge:
    """Masks and ranks a model's scores as tripletune does."""

    def __init__(self, job: Path) -> None:
        self.film_ids_M = np.load(job / "questions.npz")["film_ids"]
        self._questions = {
            purpose: read_questions(job / "questions.npz", purpose, self.film_ids_M) for purpose in ("valid", "test")
        }

    def ndcg(self, score: Score) -> float:
        """Mean valid ndcg_at_10; a tie counts as lost."""
        asked = self._questions["valid"]
        gains = []
        for start, scores_VM in _blocks(score, asked):
            answer_V = asked.answer_U[start : start + len(scores_VM)]
            wanted_V1 = np.take_along_axis(scores_VM, answer_V[:, None], axis=1)
            rank_V = (_mask(scores_VM, asked, start) >= wanted_V1).sum(axis=1)
            # a film that the model does not know has no rank at all
            gains.append(
                np.where((rank_V <= TOP) & (wanted_V1[:, 0] > -np.inf), 1 / np.log2(np.maximum(rank_V, 1) + 1.0), 0.0)
            )
        return float(np.concatenate(gains).mean())

    def top(self, score: Score, purpose: str) -> Any:
        """Film ids (U, 20), best first; of equal scores the lower column wins."""
        asked = self._questions[purpose]
        lists = []
        for start, scores_VM in _blocks(score, asked):
            _mask(scores_VM, asked, start)
            top_VK = np.argsort(-scores_VM, axis=1, kind="stable")[:, :LENGTH]
            known_VK = np.take_along_axis(scores_VM, top_VK, axis=1) > -np.inf
            lists.append(np.where(known_VK, self.film_ids_M[top_VK], -1))
        return np.concatenate(lists)


def _blocks(score: Score, asked: Questions) -> Iterator[tuple[int, Any]]:
    for start in range(0, len(asked.users), BLOCK):
        yield start, score(asked, start, min(start + BLOCK, len(asked.users)))


def _mask(scores_VM: Any, asked: Questions, start: int) -> Any:
    first, last = np.searchsorted(asked.seen_row_S, [start, start + len(scores_VM)])
    scores_VM[asked.seen_row_S[first:last] - start, asked.seen_column_S[first:last]] = -np.inf
    return scores_VM


class CapReached(Exception):
    """The run has trained for as many CPU seconds as it may."""


class Recorder:
    """Times training, and keeps the curve and the best lists on disk as they come."""

    def __init__(self, judge: Judge, score: Score, out: Path, cap_seconds: float) -> None:
        self._judge, self._score, self._out, self._cap = judge, score, out, cap_seconds
        self._seconds = self._cpu = 0.0
        self._begun = (0.0, 0.0)
        self._best, self.best_epoch = -1.0, 0
        self._started = time.perf_counter()
        self._started_cpu = time.process_time()
        (out / "curve.jsonl").unlink(missing_ok=True)

    def start(self) -> None:
        """An epoch begins."""
        self._begun = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """The epoch has ended: its wall and CPU seconds count as training."""
        self._seconds += time.perf_counter() - self._begun[0]
        self._cpu += time.process_time() - self._begun[1]

    def record(self, epoch: int, **further: float) -> None:
        """Evaluate after an epoch, counted from 1; keep its lists if it is the best so far.

        Raises:
            CapReached: training and evaluation have taken the CPU seconds they may. Not wall seconds: what else runs on
                the machine must not decide how long a baseline trains.
        """
        ndcg = self._judge.ndcg(self._score)
        line = {
            "epoch": epoch,
            "train_seconds": round(self._seconds, 3),
            "train_cpu_seconds": round(self._cpu, 3),
            "valid_ndcg_at_10": ndcg,
            **further,
            "seconds_with_evaluation": round(time.perf_counter() - self._started, 3),
        }
        with (self._out / "curve.jsonl").open("a", encoding="utf-8") as curve:
            curve.write(json.dumps(line) + "\n")
        if ndcg > self._best:
            self._best, self.best_epoch = ndcg, epoch
            for purpose in ("valid", "test"):
                np.save(self._out / f"top_{purpose}.npy", self._judge.top(self._score, purpose))
        if time.process_time() - self._started_cpu > self._cap:
            raise CapReached
