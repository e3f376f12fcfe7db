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


class TestSequenceBaselines:
    """Lists of other libraries next to ours, as a work folder holds them."""

    @pytest.fixture
    def module(self, benchmark):
        return benchmark("sequence_baselines")

    def lists(self, retriever, seed, ranks):
        """One query a user; the answer, film 1, at the given rank, 0 for not at all."""
        tops = [[*range(2, rank + 1), 1] if rank else [2, 3] for rank in ranks]
        columns = {"user_id": range(len(ranks)), "purpose": "test", "retriever": retriever, "answer": 1, "top": tops}
        return pl.DataFrame({**columns, "seed": seed})

    def release(self, folder, rankings):
        folder.mkdir(parents=True)
        valid = rankings.with_columns(purpose=pl.lit("valid"))
        pl.concat([rankings, valid]).write_parquet(folder / "rankings.parquet")
        facts = {"command": "python ...", "notes": {"RecTools SASRec": "lr 1"}, "seed": 7, "points": 2}
        (folder / "facts.json").write_text(json.dumps(facts), encoding="utf-8")

    def test_the_split_of_a_retrieve_stage_is_the_one_of_its_manifest(self, module, tmp_path):
        rankings, split = tmp_path / "data" / "retrieve" / "abc", tmp_path / "data" / "split" / "def"
        for folder, manifest in (
            (rankings, {"parents": {"split": "def"}}),
            (split, {"ingredients": {"fields": {"seed": 11}}}),
        ):
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        run = module.read_run(rankings, tmp_path / "work")
        assert (run.split, run.seed, run.folder) == (split, 11, tmp_path / "work" / "seed-11")
        (split / "manifest.json").unlink()
        split.rmdir()
        with pytest.raises(SystemExit, match=r"split/def, which is gone; run split and retrieve again"):
            module.read_run(rankings, tmp_path / "work")

    def test_a_row_is_the_mean_over_seeds_and_the_interval_that_of_users_means(self, module, tmp_path):
        ours = self.lists("fused", 7, [1, 1, 1, 0])
        theirs = [self.lists("RecTools SASRec", 7, [1, 0, 0, 0]), self.lists("RecTools SASRec", 8, [1, 3, 11, 0])]
        self.release(tmp_path / "small", pl.concat([ours, *theirs]))
        lines = module.report(tmp_path).splitlines()
        assert any("4 queries; 2 of 4 points of the grid trained." in line for line in lines)
        assert any("recbole 1.2.1, rectools 0.19.0" in line for line in lines)
        (row,) = (line for line in lines if line.startswith("| RecTools SASRec") and line.endswith("lr 1 |"))
        # hr_at_10 of the seeds 1/4 and 2/4, hr_at_20 1/4 and 3/4, ndcg_at_10 1/4 and 1.5/4
        assert "| 0.3750 ± 0.1768 | 0.5000 ± 0.3536 | 0.3125 ± 0.0884 | 2 | lr 1 |" in row
        (gain,) = (line for line in lines if line.startswith("| RecTools SASRec |") and "[" in line)
        assert gain.startswith("| RecTools SASRec | +0.3750 [")

    def test_lists_of_other_queries_are_no_pair(self, module, tmp_path):
        rows = [self.lists("fused", 7, [1, 1]), self.lists("RecTools SASRec", 7, [1])]
        self.release(tmp_path / "small", pl.concat(rows))
        with pytest.raises(SystemExit, match="has lists of different queries"):
            module.report(tmp_path)

    def test_every_model_has_the_same_points_of_the_grid(self, module):
        for model in module.MODELS.values():
            points = [model.settings(point) for point in module.WIDTH_DROPOUT_RATE]
            told = [
                (
                    point.get("n_factors", point.get("hidden_size")),
                    point.get("dropout_rate", point.get("hidden_dropout_prob")),
                    point.get("lr", point.get("learning_rate")),
                )
                for point in points
            ]
            assert tuple(told) == module.WIDTH_DROPOUT_RATE
