"""The GPU benchmark on real ratings trains, ranks and reports, on the CPU and on a GPU, and steps aside without one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest
import torch

from tests.graph_cases import plant_split
from tripletune.models.sequence.fit import train_sequence

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))  # kept, as the processes that it starts import it too
        yield importlib.import_module("sequence_ratings")


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
        score_M = (fit.movie_vectors_MD @ script_vector(script, fit, before) + fit.model.bias_M).numpy()
        score_M[fit.catalogue.columns(before["movie_id"].to_numpy())] = -np.inf
        better = int((score_M > score_M[fit.catalogue.columns(np.array([movie]))[0]]).sum())
        assert rank == min(better, script.DEPTH) + 1


def script_vector(script: ModuleType, fit, before: pl.DataFrame) -> torch.Tensor:
    """A user's vector, asked alone."""
    zeros = np.zeros(len(before), dtype=np.int64)
    columns = (before[name].to_numpy().astype(np.int64) for name in ("movie_id", "timestamp"))
    movie_E, time_E = columns
    like_E = before["label"].is_in(["graph", "target", "valid", "test"]).to_numpy()
    events = script.RatingEvents(zeros, movie_E, before["rating"].to_numpy(), time_E, like_E)
    nobody = script.Likes(*(np.zeros(0, np.int64) for _ in range(3)))
    rated = before.with_columns(viewer=pl.lit(0))
    histories = script.Histories(
        likes=nobody,
        events=events,
        seen=script.rated_columns(rated, fit.catalogue, 1),
        lightgcn_UD=torch.zeros(1, 1),
    )
    return fit.users(histories)[0]
