"""The GPU benchmark of the sequence model runs, on the CPU and on a GPU, and steps aside where there is no GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from tests.benchmark_scripts import benchmark_script
from tripletune.config import SequenceConfig


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("gpu/sequence") as module:
        yield module


def test_without_a_gpu_it_says_so_and_writes_nothing(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script.measure(out=tmp_path / "report.json")
    assert "torch sees no GPU here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_measures_in_a_tiny_size_and_its_step_is_the_cpus(script, device, tmp_path):
    script.measure(out=tmp_path / "report.json", device=device, tiny=True, steps=2)
    page = json.loads((tmp_path / "report.json").read_text())
    assert page["ended"] == "complete"
    device_loss, cpu_loss = page["results"]["check"]["losses"]
    assert math.isfinite(cpu_loss)
    assert device_loss == pytest.approx(cpu_loss, rel=1e-4)
    text = script.format_report(page)
    assert "| 16 | float32 |" in text
    assert "| 16 | bfloat16 |" in text
    del page["results"]["check"], page["results"]["batch 16, bfloat16"]
    assert "# The sequence model" in script.format_report(page)


def test_the_operations_of_a_step_by_hand(script):
    settings = SequenceConfig(dim=4, heads=2, layers=1, max_length=3, batch_viewers=2, sampled_films=5)
    # 6 places: 24 * 16 + 4 * 3 * 4 for the block, and half of them 2 * (5 + 3) * 4 for the softmax; times three
    assert script.operations(settings, 100) == 3 * 6 * (432 + 0.5 * 64)


def test_nobody_rates_a_film_twice_and_popular_films_are_rated_more(script):
    events, likes = script.draw_streams(users=40, length=20, films=50)
    movie_UL = events.movie_E.view(40, 20)
    assert all(len(set(row)) == 20 for row in movie_UL.tolist())
    assert 0 <= int(movie_UL.min()) <= int(movie_UL.max()) < 50
    assert (movie_UL < 25).sum() > 1.1 * (movie_UL >= 25).sum()
    assert (movie_UL.diff(dim=1) < 0).any()
    assert likes.movie_E.tolist() == events.movie_E[events.like_E].tolist()
