"""The files and facts that every trained model writes in the same layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from tripletune.models.training.interactions import Interactions, Likes, ValidQuestions
from tripletune.models.training.loop import Run, write_fits
from tripletune.schemas.training import CURVE, TRAINED_ON


def interactions() -> Interactions:
    """Three films; fit a has three likes of two users, fit b two more and another user."""
    none = torch.zeros(0, dtype=torch.int64)
    fits = {
        "a": Likes(np.array([7, 9], dtype=np.int32), torch.tensor([0, 1, 1]), torch.tensor([2, 0, 2])),
        "b": Likes(np.array([7, 8, 9], dtype=np.int32), torch.tensor([0, 0, 1, 2, 2]), torch.tensor([2, 1, 0, 0, 2])),
    }
    valid = ValidQuestions(Likes(np.zeros(0, dtype=np.int32), none, none), none, none, none)
    return Interactions(np.array([10, 20, 30], dtype=np.int32), fits, valid)


def finished(best_ndcg: float) -> dict[str, Run]:
    """Fit b ran 40 steps, of which 20 were the best; fit a ran these."""
    b = Run("b", {"y": torch.ones(2, dtype=torch.float64)}, 40, 20, best_ndcg, seconds=5.0)
    b.note(20, 0.5, max(best_ndcg, 0.0))
    b.note(40, 0.25, 0.0)
    a = Run("a", {"x": torch.arange(6.0).view(2, 3).T, "w": torch.zeros(1)}, 20, 20, seconds=1.0)
    a.note(20, 0.75, None)
    return {"a": a, "b": b}


@pytest.mark.parametrize(("best", "fact"), [(0.125, 0.125), (0.0, 0.0), (-1.0, None)])
def test_facts_count_steps_films_users_and_likes(tmp_path: Path, best: float, fact: float | None) -> None:
    assert write_fits(tmp_path, finished(best), interactions()) == {
        "steps": 20,
        "best_valid_ndcg_at_10": fact,
        "seconds_per_step": 0.1,  # 6 seconds for 20 steps and 40
        "movies": 3,
        "viewers_a": 2,
        "viewers_b": 3,
        "likes_a": 3,
        "likes_b": 5,
    }


def test_files_hold_the_tensors_the_films_the_likes_and_the_curve(tmp_path: Path) -> None:
    write_fits(tmp_path, finished(0.125), interactions(), {"half_life": 4.0, "power": 0.5})
    tensors = load_file(tmp_path / "fit_a.safetensors")
    assert tensors.keys() == {"w", "x"}
    assert tensors["x"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert load_file(tmp_path / "fit_b.safetensors")["y"].dtype == torch.float32
    assert pl.read_parquet(tmp_path / "movies.parquet").rows() == [(0, 10), (1, 20), (2, 30)]
    likes = pl.read_parquet(tmp_path / "trained_on.parquet")
    assert likes.schema == TRAINED_ON
    assert likes.rows() == [
        *[(7, 30, "a"), (9, 10, "a"), (9, 30, "a")],
        *[(7, 30, "b"), (7, 20, "b"), (8, 10, "b"), (9, 10, "b"), (9, 30, "b")],
    ]
    curve = pl.read_parquet(tmp_path / "curve.parquet")
    assert curve.schema == CURVE
    assert curve.rows() == [("a", 20, 0.75, None), ("b", 20, 0.5, 0.125), ("b", 40, 0.25, 0.0)]
    assert json.loads((tmp_path / "pooling.json").read_text()) == {"half_life": 4.0, "power": 0.5}


def test_what_does_not_pool_users_writes_no_settings_of_it(tmp_path: Path) -> None:
    write_fits(tmp_path, finished(0.125), interactions())
    assert not (tmp_path / "pooling.json").exists()
