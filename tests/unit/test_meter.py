"""The training's meter, with clocks that a test turns and figures worked out by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from tripletune.estimate.model_size import Linear, ModelSize
from tripletune.finetune.meter import Hardware, Meter, count_batch, peak_of_process

# one layer with one map of 10 x 5, no LoRA: a token costs 2 x 50 forward and as much backward, a pair of places
# 4 x 2 forward and twice that backward, a predicted place 2 x 10 x 3 forward and as much backward
SIZE = ModelSize(
    linears=(Linear(10, 5, 1),),
    layers=1,
    hidden=10,
    intermediate=5,
    heads=1,
    attention_width=2,
    key_width=2,
    vocabulary=3,
    parameters=80,
    embedding_parameters=30,
)


def labels(*last: int) -> dict[str, torch.Tensor]:
    return {"last": torch.tensor(last)}


class World:
    """A meter, its clocks and the ranks that it gathers from."""

    def __init__(self, hardware: Hardware | None = None, others: list[list[float]] | None = None) -> None:
        self.now, self.cpu, self.peak, self.settled = 100.0, 0.0, 2.0 * 2**30, 0
        self.meter = Meter(
            hardware or Hardware(),
            gather=lambda row: [row, *(others or [])],
            settle=self._settle,
            peak_bytes=lambda: self.peak,
            clock=lambda: self.now,
            cpu_clock=lambda: self.cpu,
        )

    def _settle(self) -> None:
        self.settled += 1

    def passes(self, seconds: float, cpu: float = 0.0) -> None:
        self.now += seconds
        self.cpu += cpu

    def source(self, *batches: tuple[float, dict[str, Any]]) -> Iterator[Any]:
        """Batches that take some seconds to come."""
        for seconds, batch in batches:
            self.passes(seconds)
            yield batch

    def train(self, *batches: tuple[float, dict[str, Any]], step: float) -> None:
        """Take the batches, each with so many seconds of computing."""
        for _ in self.meter.watch(self.source(*batches)):
            self.passes(step, cpu=2 * step)


def test_tokens_places_and_time_of_an_interval_by_hand():
    world = World(Hardware(size=SIZE, peak=1000.0, recomputes=True))
    world.train((50.0, labels(3, 1)), step=4.0)  # the first batch starts the clock when it is there
    world.train((1.0, labels(9)), step=5.0)
    found = world.meter.read()
    flops = 16 * (2 * 2 * 50) + (16 + 4 + 100) * 3 * 8 + 3 * (2 * 2 * 30)
    recomputed = 16 * 2 * 50 + 120 * 8
    assert found == pytest.approx(
        {
            "tokens_per_second": 16 / 10,
            "tokens_per_second_per_gpu": 16 / 10,
            "peak_memory_gib": 2.0,
            "loader_wait_seconds": 1.0,
            "cpu_cores": 18 / 10,
            "mfu": flops / 10_000,
            "hfu": (flops + recomputed) / 10_000,
        }
    )


def test_after_a_log_the_next_interval_starts_at_its_first_batch():
    world = World()
    world.train((0.0, labels(9)), step=1.0)
    world.meter.read()
    world.passes(500.0)  # an evaluation and a checkpoint
    world.train((2.0, labels(9)), step=3.0)
    found = world.meter.read()
    assert found["tokens_per_second"] == pytest.approx(10 / 5)
    assert found["loader_wait_seconds"] == pytest.approx(2.0)


def test_an_evaluation_within_an_interval_is_not_counted():
    world = World()
    world.train((0.0, labels(9)), step=1.0)
    world.meter.pause()
    assert world.settled == 1  # what the device still does belongs to the training
    world.passes(500.0)
    world.meter.pause()
    world.train((0.0, labels(9)), step=1.0)
    assert world.meter.read()["tokens_per_second"] == pytest.approx(10.0)


def test_without_a_known_peak_there_is_no_utilisation_and_without_recomputing_one():
    world = World(Hardware(size=SIZE))
    world.train((0.0, labels(9)), step=1.0)
    assert {"mfu", "hfu"} & world.meter.read().keys() == set()
    world = World(Hardware(size=SIZE, peak=1000.0))
    world.train((0.0, labels(9)), step=1.0)
    assert {"mfu", "hfu"} & world.meter.read().keys() == {"mfu"}


def test_ranks_tokens_are_summed_and_the_slowest_and_fullest_rank_counts():
    other = [30.0, 900.0, 1.0, 4.0, 0.5, 1.0, 3.0 * 2**30]  # tokens, squares, predicted, seconds, waited, cpu, peak
    world = World(Hardware(size=SIZE, peak=100.0), others=[other])
    world.train((0.0, labels(9)), step=2.0)
    found = world.meter.read()
    flops = 40 * 200 + 1000 * 24 + 2 * 120
    assert found == pytest.approx(
        {
            "tokens_per_second": 40 / 4,
            "tokens_per_second_per_gpu": 40 / 4 / 2,
            "peak_memory_gib": 3.0,
            "loader_wait_seconds": 0.5,
            "cpu_cores": (4 + 1) / 4,
            "mfu": flops / (4 * 100 * 2),
        }
    )


def test_totals_are_of_all_intervals_and_of_what_was_not_logged():
    world = World(Hardware(size=SIZE, peak=1000.0))
    assert world.meter.facts() == {}
    world.train((0.0, labels(9)), step=1.0)
    world.meter.read()
    world.peak /= 2  # of the second interval
    world.train((1.0, labels(9)), step=2.0)
    mfu = (2 * (10 * 200 + 100 * 24 + 120)) / (4 * 1000)
    assert world.meter.facts() == pytest.approx(
        {
            "tokens_trained": 20,
            "tokens_per_second": 5.0,
            "mfu": round(mfu, 4),
            "peak_memory_gib": 2.0,
            "loader_wait_share": 0.25,
        }
    )


def test_padding_is_not_counted_and_predicted_places_are_those_of_the_completion():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    target = torch.tensor([[-100, -100, 5, 6], [7, 8, -100, -100]])  # nothing predicts a first token
    batch = {"attention_mask": mask, "labels": target}
    assert count_batch(batch).tolist() == [6.0, 20.0, 3.0]
    assert count_batch({"last": torch.tensor([4, 0])}).tolist() == [6.0, 26.0, 2.0]


def test_the_peak_of_a_process_is_its_own_and_not_that_of_the_one_that_started_it():
    ballast = np.ones(3 * 2**26)  # 1.5 GiB
    script = "from tripletune.finetune.meter import peak_of_process; print(peak_of_process())"
    path = os.pathsep.join(filter(None, sys.path))
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert float(found.stdout) < ballast.nbytes
    assert peak_of_process() >= max(psutil.Process().memory_info().rss, ballast.nbytes)
