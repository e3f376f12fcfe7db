"""The unified table: what RecBole's knowledge-aware models and BERT4Rec are given, and how rows of all kinds meet."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small_world
from compared_runs import values_of, write_compared
from scipy.stats import permutation_test

from tests.benchmark_scripts import benchmark_script
from tripletune.config.presets import load_config
from tripletune.schemas.rank import ALONE
from tripletune.store.runs import RunRecord, write_run

ROOT = Path(__file__).parents[2]
SEED = 7
METRICS = ("hr_at_5", "hr_at_10", "ndcg_at_5", "ndcg_at_10")


@pytest.fixture(scope="module")
def export():
    with benchmark_script("recbole_export") as module:
        yield module


@pytest.fixture(scope="module")
def unified(export):
    return importlib.import_module("unified")


@pytest.fixture(scope="module")
def rows_module(export):
    return importlib.import_module("unified_rows")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def run(world, export):
    """A run whose only list is popularity, in the layout of an artifact store."""
    sequence_baselines = importlib.import_module("sequence_baselines")
    rankings = world.root / "retrieve" / "abc"
    rankings.mkdir()
    inputs = {"ingredients": {"inputs": {"imdb/title.basics.tsv.gz": "..."}}}
    (world.knowledge / "manifest.json").write_text(json.dumps(inputs), encoding="utf-8")
    for folder, manifest in (
        (rankings, {"dataset": "small", "parents": {"split": "x", "knowledge": "."}}),
        (world.split, {"ingredients": {"fields": {"seed": SEED}}}),
    ):
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    parts = []
    for purpose in ("valid", "test"):
        answers = export.read_only_users(world.split, purpose, unseen=True).answers
        tops = [[film % 60 + 1, film] for film in answers["movie_id"]]  # the held-out film comes second
        parts.append(
            answers.select(
                "user_id", answer="movie_id", purpose=pl.lit(purpose), retriever=pl.lit("popularity")
            ).with_columns(top=pl.Series(tops, dtype=pl.List(pl.Int32)))
        )
    pl.concat(parts).write_parquet(rankings / "rankings.parquet")
    return sequence_baselines.Run(world.root / "work", rankings, world.split, SEED)


def read(path):
    return pl.read_csv(path, separator="\t", infer_schema=False).rename(lambda name: name.split(":")[0])


class TestGraph:
    """The files ``likes.kg`` and ``likes.link``."""

    @pytest.fixture(scope="class")
    @classmethod
    def likes(cls, world, export, tmp_path_factory):
        folder = tmp_path_factory.mktemp("job")
        export.write_job(world.split, folder, SEED, sequences=False)
        cls.counts = importlib.import_module("recbole_graph").write_graph(world.knowledge, folder / "likes")
        return folder / "likes"

    def test_the_triples_are_those_of_the_graph_by_film_relation_and_entity(self, likes, world):
        keys = pl.read_parquet(world.knowledge / "entities.parquet")["key"].to_list()
        told = {(keys[int(h)], r, keys[int(t)]) for h, r, t in read(likes / "likes.kg").iter_rows()}
        assert told == {(f"movie:{film}", relation, entity) for film, relation, entity in small_world.triples().rows()}
        assert self.counts["triples"] == len(small_world.triples()) == len(read(likes / "likes.kg"))

    def test_linked_is_every_film_of_the_likes_that_has_a_fact_and_no_other(self, likes, world):
        films = pl.concat([read(likes / f"likes.{part}.inter") for part in ("train", "valid", "test")])["item_id"]
        link = read(likes / "likes.link")
        assert set(link["item_id"]) == set(films) - {"60"}  # film 60 has no triple
        assert "60" in set(films)
        keys = pl.read_parquet(world.knowledge / "entities.parquet")["key"].to_list()
        assert all(keys[int(entity)] == f"movie:{film}" for film, entity in link.iter_rows())
        assert self.counts["linked"] == len(link)

    def test_likes_of_another_release_are_refused(self, likes, world, tmp_path):
        for part in ("train", "valid", "test"):
            (tmp_path / f"likes.{part}.inter").write_text("user_id:token\titem_id:token\n1\t999\n", encoding="utf-8")
        with pytest.raises(SystemExit, match="has no film 999"):
            importlib.import_module("recbole_graph").write_graph(world.knowledge, tmp_path)


def test_each_like_stands_in_one_stretch_of_at_most_fifty_counted_from_the_newest(export):
    likes = pl.DataFrame({"user_id": [1] * 53 + [2], "movie_id": [*range(100, 153), 7]})
    told = export.windows(likes)
    assert told["item_id_list"].to_list() == [[100, 101, 102], list(range(103, 153)), [7]]
    assert told.select("user_id", "movie_id").rows() == [(1, 102), (1, 152), (2, 7)]


def trained(module, folder, lists, **done):
    folder.mkdir()
    curve = {"epoch": 3, "train_cpu_seconds": 12.0, "valid_ndcg_at_10": done.pop("valid", 0.1)}
    (folder / "curve.jsonl").write_text(json.dumps(curve) + "\n", encoding="utf-8")
    told = {"settings": {"learning_rate": 1}, "ended": "early stopping", "parameters": 99, **done}
    (folder / "done.json").write_text(json.dumps(told), encoding="utf-8")
    for purpose, lists_UK in lists.items():
        np.save(folder / f"top_{purpose}.npy", lists_UK)
    return module.Trained(folder)


def lists_for(export, world, place, *, unseen=False):
    """Lists of three films with the held-out one at the place, counted from 0."""
    found = {}
    for purpose in ("valid", "test"):
        films = export.read_only_users(world.split, purpose, unseen=unseen).answers["movie_id"].to_numpy()
        found[purpose] = np.stack([(films + shift) % 60 + 1 for shift in (1, 2, 3)], axis=1)
        found[purpose][:, place] = films
    return found


def test_lists_of_recbole_are_scored_for_the_users_they_were_exported_for(rows_module, run, export, world, tmp_path):
    one = trained(rows_module, tmp_path / "KGAT-1", lists_for(export, world, 2), valid=0.1, rows=5)
    other = trained(rows_module, tmp_path / "KGAT-2", lists_for(export, world, 0), valid=0.05, rows=5)
    row = rows_module.row_of_recbole(run, "RecBole KGAT", [one, other], {"rows": 5}, "python", "Note.")
    warm = export.read_only_users(world.split, "test").users["user_id"]
    assert row.test["user_id"].to_list() == warm.to_list()
    # by valid the first is better, whatever it does on test: rank 3 gives 1 / log2(4)
    assert row.test["ndcg_at_10"].to_list() == pytest.approx([1 / math.log2(4)] * len(warm))
    assert (row.cost.seconds, row.cost.parameters) == ("12 CPU", 99)
    assert "Best of 2 by valid: learning_rate 1" in row.note
    unseen = trained(rows_module, tmp_path / "BERT4Rec-1", lists_for(export, world, 1, unseen=True), ended="cut off")
    row = rows_module.row_of_recbole(run, "RecBole BERT4Rec", [unseen], {}, "python", "")
    assert row.name == "RecBole BERT4Rec, cut short"
    assert set(row.test["user_id"]) > set(warm)


def test_a_training_on_other_rows_or_triples_is_refused(rows_module, run, export, world, tmp_path):
    one = trained(rows_module, tmp_path / "CKE-1", lists_for(export, world, 0), rows=5, triples=7)
    for counts, name in (({"rows": 6, "triples": 7}, "5 rows, the export 6"), ({"triples": 8}, "7 triples")):
        with pytest.raises(SystemExit, match=name):
            rows_module.row_of_recbole(run, "RecBole CKE", [one], counts, "python", "")


def test_lists_that_answer_other_questions_are_refused(rows_module, run, export, world, tmp_path):
    one = trained(rows_module, tmp_path / "KGAT-1", lists_for(export, world, 0))
    rankings = pl.read_parquet(run.rankings / "rankings.parquet")
    other = tmp_path / "retrieve"
    other.mkdir()
    rankings.with_columns(answer=pl.col("answer") % 60 + 1).write_parquet(other / "rankings.parquet")
    moved = type(run)(run.folder, other, run.split, run.seed)
    with pytest.raises(SystemExit, match="other questions for test"):
        rows_module.answered(moved, one, "test")
    short = {purpose: lists[:-1] for purpose, lists in lists_for(export, world, 0).items()}
    with pytest.raises(SystemExit, match=r"lists for .* users; remove it"):
        rows_module.answered(run, trained(rows_module, tmp_path / "short", short), "test")


def test_a_run_of_another_split_or_with_its_answers_among_the_candidates_is_refused(rows_module, run, tmp_path):
    values = {"test": values_of(9, 1), "valid": values_of(9, 2)}
    write_compared(tmp_path, "published", values, config={"retrieve": {"candidates": "kerag"}})
    with pytest.raises(SystemExit, match="published put the answers among its candidates"):
        rows_module.rows_of_language_models(run, tmp_path, "published")
    write_compared(tmp_path, "other", values)
    with pytest.raises(SystemExit, match="other is on another split"):
        rows_module.rows_of_language_models(run, tmp_path, "other")


def test_another_stage_adds_the_lists_that_rank_otherwise_and_must_be_on_the_same_split(
    unified, rows_module, run, world, tmp_path
):
    rows = rows_module.rows_of_ours(run)
    assert [(row.name, set(row.test["ndcg_at_10"].round(4))) for row in rows] == [("popularity", {0.6309})]
    assert rows[0].command == "make run CONFIG=configs/small.toml IMDB=imdb"
    rankings = pl.read_parquet(run.rankings / "rankings.parquet")
    first = rankings.with_columns(top=pl.col("top").list.reverse(), retriever=pl.lit("lightgcn"))
    shutil.copytree(world.knowledge, tmp_path / "mine" / "knowledge" / "k")
    other = tmp_path / "mine" / "retrieve" / "abc"
    other.mkdir(parents=True)
    pl.concat([rankings, first]).write_parquet(other / "rankings.parquet")
    (other / "manifest.json").write_text(
        json.dumps({"dataset": "mine", "parents": {"knowledge": "k"}}), encoding="utf-8"
    )
    there = replace(run, rankings=other)
    (added,) = unified.further_rows(rows, there, run)
    assert (added.name, set(added.test["hr_at_5"]), set(added.test["ndcg_at_5"])) == ("LightGCN of mine", {1.0}, {1.0})
    with pytest.raises(SystemExit, match="is on another split than"):
        unified.further_rows(rows, replace(there, split=tmp_path / "y"), run)


def write_finished(root, split, systems, preset="smollm2"):
    """A run of a preset with another objective; ``systems`` gives the number of users of each row."""
    config = load_config(ROOT / "configs" / f"{preset}.toml").model_dump(mode="json")
    config["finetune"]["objective"] = "ranknet"
    facts = {
        "generate": {"mean_tokens": 700.4},
        "finetune": {"trainable_parameters": 5, "tokens": 1234},
        "rank": {},
        "evaluate": {},
    }
    prints = dict.fromkeys(facts, "f") | {"split": split}
    write_run(
        root,
        RunRecord(name="done", dataset=preset, status="completed", started="now", config=config, fingerprints=prints),
    )
    for stage, told in facts.items():
        folder = root / preset / stage / "f"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"seconds": 61.0, "facts": told}), encoding="utf-8")
    frames = [
        pl.DataFrame({"user_id": range(number, 0, -1), "purpose": purpose, "row": system} | dict.fromkeys(METRICS, 0.5))
        for system, number in systems.items()
        for purpose in ("valid", "test")
    ]
    pl.concat(frames).write_parquet(root / preset / "evaluate" / "f" / "per_viewer.parquet")


def test_rows_of_a_run_say_what_they_took_and_which_settings_are_not_its_presets(rows_module, run, tmp_path):
    write_finished(tmp_path, run.split.name, {"random": 4, "untuned": 2, "tuned": 4, "retriever": 4})
    rows = rows_module.rows_of_language_models(run, tmp_path, "done")
    # untuned ranked for two of the four, and retriever is a row of the first stage
    assert [row.name for row in rows] == ["smollm2, ranknet: random order", "smollm2, ranknet: tuned"]
    assert rows[1].test["user_id"].to_list() == [1, 2, 3, 4]
    assert rows[1].cost == rows_module.Cost("61 + 61", 5, "1,234; 700 a prompt")
    assert rows[1].command == (
        ".venv/bin/tripletune run --config configs/smollm2.toml --set finetune.objective=ranknet"
    )
    assert rows[1].note == "smollm2-135m, finetune.objective = ranknet"


def test_every_preset_of_a_published_recipe_says_how_it_departs_from_its_paper(rows_module, run, tmp_path):
    assert all((ROOT / "configs" / f"{name}.toml").is_file() for name in rows_module.PRESET_DEPARTURES)
    assert set(rows_module.LANGUAGE_MODELS) >= set(ALONE.values())
    systems = dict.fromkeys(("random", "tuned", *ALONE.values()), 4)
    write_finished(tmp_path, run.split.name, systems, preset="recranker")
    rows = rows_module.rows_of_language_models(run, tmp_path, "done")
    assert [row.name.partition(": ")[2] for row in rows][2:] == [
        "tuned, lists alone",
        "tuned, questions alone",
        "tuned, choices alone",
    ]
    assert all(row.note.startswith("First stage: our sequence model; SmolLM2 with LoRA") for row in rows)
    assert all(row.note.endswith("smollm2-135m, finetune.objective = ranknet") for row in rows)


def test_a_model_may_be_trained_at_fewer_points_than_the_others(unified):
    assert unified.asked("KGAT,BERT4Rec:1", 2) == {"KGAT": 2, "BERT4Rec": 1}
    assert unified.asked("", 2) == {}
    for wrong in ("SASRec", "KGAT:3", "KGAT:0"):
        with pytest.raises(SystemExit, match="is not in the grid; give models"):
            unified.asked(wrong, 2)


def row(module, name, ndcgs, *, users=None, is_language_model=False):
    frame = pl.DataFrame({"user_id": users or range(len(ndcgs))} | dict.fromkeys(METRICS, ndcgs))
    return module.Row(name, frame, frame, module.Cost("3", 10), "make run", is_language_model=is_language_model)


def test_every_table_is_of_the_users_that_all_of_its_rows_ranked_for(unified, rows_module, run):
    fused = row(rows_module, "fused", [1.0, 0.0, 1.0, 1.0])
    kgat = row(rows_module, "RecBole KGAT", [1.0, 0.5, 0.0], users=[0, 1, 2])  # cannot rank for user 3
    model = row(rows_module, "tiny: tuned", [0.25, 0.75], users=[2, 3], is_language_model=True)
    text = "\n".join(unified.section("small", run, [fused, kgat, model]))
    assert "3 users that all ranked for" in text
    assert "2 users that all ranked for" in text
    assert "| RecBole KGAT | 0.5000 | 0.5000 (" in text
    assert text.count("| fused | 0.6667 |") == 1
    assert text.count("| fused | 1.0000 |") == 1  # next to the language model: users 2 and 3
    assert "| RecBole KGAT | ndcg_at_10 | +0.1667 (" in text
    assert "| tiny: tuned | ndcg_at_10 | +0.5000 (" in text
    assert unified.shared_users([fused, kgat])["user_id"].to_list() == [0, 1, 2]
    with pytest.raises(SystemExit, match="no user"):
        unified.shared_users([kgat, row(rows_module, "x", [1.0], users=[9])])


def test_p_values_are_those_of_scipy_and_are_adjusted_by_holm_over_the_whole_table(unified, rows_module):
    """Few users, so that the randomisation is exact; Holm by hand: sorted p-values times the number still left."""
    fused = row(rows_module, "fused", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    strong = row(rows_module, "a", [0.0] * 9)
    weak = row(rows_module, "b", [0.3, 0.4, 0.5, 0.5, 0.3, 0.2, 0.6, 0.5, 0.0])
    lines = unified.differences([fused, strong, weak], fused.test.select("user_id"))[2:]
    found = [float(line.split(" | ")[3]) for line in lines]
    expected = []
    for other in (strong, strong, weak, weak):  # two metrics each, here alike
        gain_U = fused.test["ndcg_at_10"].to_numpy() - other.test["ndcg_at_10"].to_numpy()
        exact = permutation_test((gain_U,), np.mean, permutation_type="samples", n_resamples=np.inf)
        expected.append(exact.pvalue)
    assert found == pytest.approx(expected, abs=1e-4)
    adjusted = [4 * expected[0], 4 * expected[0], 2 * expected[2], 2 * expected[2]]
    assert adjusted[2] < 1
    assert [float(line.split(" | ")[4]) for line in lines] == pytest.approx(adjusted, abs=1e-4)
