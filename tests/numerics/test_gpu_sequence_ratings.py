"""The GPU benchmark on real ratings trains, ranks and reports, on the CPU and on a GPU, and steps aside without one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import polars as pl
import pytest
import torch

from tests.benchmark_scripts import benchmark_script
from tests.graph_cases import plant_split
from tests.sequence_cases import given
from tripletune.models.sequence.fit import train_sequence


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("gpu/sequence_ratings") as module:
        yield module


def test_without_a_gpu_it_says_so_and_writes_nothing(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script.measure(releases=tmp_path, out=tmp_path / "report.json")
    assert "torch sees no GPU here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_trains_every_variant_on_every_release_and_the_page_has_them(script, device, tmp_path):
    plant_split(tmp_path / "releases" / "planted" / "split")
    variants = {"small": {"dim": 8, "content": []}, "smaller": {"dim": 4, "content": []}}
    (tmp_path / "variants.json").write_text(json.dumps(variants))
    script.measure(
        releases=tmp_path / "releases",
        out=tmp_path / "report.json",
        variants=tmp_path / "variants.json",
        seeds=[7, 8],
        workers=2,
        device=device,
        max_steps=4,
        minutes=2.0,
    )
    page = json.loads((tmp_path / "report.json").read_text())
    assert page["ended"] == "complete"
    assert sorted(page["results"]) == [f"planted | small{er} | {seed}" for er in ("", "er") for seed in (7, 8)]
    text = script.format_report(page)
    assert "| small |" in text
    assert "±" in text


def test_the_ranks_are_those_of_all_scores_without_the_rated_films(script, tmp_path):
    plant_split(tmp_path / "split")
    settings = script.SequenceConfig(dim=8, heads=2, max_steps=4, content=(), device="cpu")
    train_sequence(tmp_path / "split", tmp_path / "out", settings, 7)
    fit = script.load_sequence(tmp_path / "out", 0, ("b",))["b"]
    rank_U = script.test_ranks(tmp_path / "split", tmp_path / "out")
    rows = pl.concat([pl.read_parquet(path) for path in sorted((tmp_path / "split").glob("shard=*/*.parquet"))])
    rows = rows.sort("user_id", "position")
    asked = rows.filter(pl.col("label") == "test").unique("user_id", keep="first", maintain_order=True)
    assert len(rank_U) == len(asked) > 0
    for rank, (user, movie, position) in zip(
        rank_U, asked.select("user_id", "movie_id", "position").iter_rows(), strict=True
    ):
        before = rows.filter(pl.col("user_id") == user, pl.col("position") < position)
        events = [
            (0, film, stars, time, label != "other")
            for film, stars, time, label in before.select("movie_id", "rating", "timestamp", "label").iter_rows()
        ]
        score_M = (fit.movie_vectors_MD @ fit.users(given(events, 1))[0] + fit.model.bias_M).numpy()
        score_M[fit.catalogue.columns(before["movie_id"].to_numpy())] = -np.inf
        better = int((score_M > score_M[fit.catalogue.columns(np.array([movie]))[0]]).sum())
        assert rank == min(better, script.DEPTH) + 1
