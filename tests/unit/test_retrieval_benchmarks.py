"""What the two retrieval benchmarks compute themselves: time to a goal, extrapolation, lists in the users' order."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import polars as pl
import pytest
import small_world

from tripletune.config.presets import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module


def trained(benchmark, folder, ndcgs):
    rows = [
        {"epoch": epoch, "train_seconds": 2.0 * epoch, "valid_ndcg_at_10": ndcg} for epoch, ndcg in enumerate(ndcgs, 1)
    ]
    (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return benchmark("retrieval_runs").Trained(folder)


def test_seconds_to_a_goal_are_those_of_the_first_evaluation_that_is_no_worse(benchmark, tmp_path):
    run = trained(benchmark, tmp_path, [0.1, 0.3, 0.2, 0.3])
    assert run.best()["epoch"] == 2
    assert run.first_at(0.15)["train_seconds"] == 4.0
    assert run.first_at(0.3)["epoch"] == 2
    assert run.first_at(0.31) is None


def test_a_capped_curve_is_extrapolated_along_its_last_third_and_never_into_its_past(benchmark):
    until = benchmark("lightgcn_vs_recbole").epochs_until
    curve = pl.DataFrame({"epoch": range(1, 10), "valid_ndcg_at_10": [0.0] * 6 + [0.1, 0.2, 0.3]})
    assert until(curve, 0.75) == 14  # 0.1 per epoch from 0.3 at epoch 9: 13.5
    assert until(curve, 0.05) == 9
    flat = curve.with_columns(valid_ndcg_at_10=pl.lit(0.2))
    assert until(flat, 0.3) is None
    assert until(curve.head(1), 0.3) is None


def test_lists_of_rankings_come_in_the_order_of_the_asked_viewers_whatever_their_length(benchmark, tmp_path):
    world = small_world.make_world(tmp_path)
    asked = benchmark("recbole_export").read_only_users(world.split, "test")
    users = asked.users["user_id"].to_list()
    tops = {user: [user + 100 * place for place in range(user % 4)] for user in reversed(range(1, 41))}
    rankings = pl.DataFrame({"user_id": list(tops), "top": list(tops.values())}, schema_overrides={"user_id": pl.Int32})
    lists_UK = benchmark("retrieval_baselines")._lists(rankings, asked)
    assert [[film for film in row if film >= 0] for row in lists_UK.tolist()] == [tops[user] for user in users]


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.stem)
def test_every_preset_can_be_asked_for_every_list(benchmark, preset, tmp_path):
    written = benchmark("retrieval_baselines").with_every_list(preset, tmp_path / "preset.toml")
    told, expected = load_config(written), load_config(preset)
    assert told.retrieve.retriever == "fused"
    same = told.retrieve.model_copy(update={"retriever": expected.retrieve.retriever})
    assert (same, told.lightgcn, told.seed) == (expected.retrieve, expected.lightgcn, expected.seed)
