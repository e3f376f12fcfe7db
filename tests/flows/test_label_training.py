"""Training on the candidates' labels, against separate references; runs in this process where it can."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.finetune_shards import LETTERS_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS as LAUNCHED
from tests.flows.test_trainer import SETTINGS, TINY, Trained, changed, keep_on_the_cpu, run
from tripletune.config import RankConfig
from tripletune.contract import read_contract
from tripletune.errors import TrainingError
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.tiny import write_tiny_llama
from tripletune.finetune.token_files import TRAIN, read_token_files, write_token_files
from tripletune.finetune.training import train
from tripletune.rank.predict import rank_examples, rank_shards
from tripletune.residual import calibrate_prior
from tripletune.schemas.rank import ALWAYS, SERVED

PRIOR = tuple(float(value) for value in calibrate_prior([[0], [1], [2], [5]], 20))
ACCELERATE = Path(__file__).parents[2] / "configs" / "accelerate"


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_on_the_cpu(monkeypatch)


def label_job(folder: Path, valid: int, **changes: Any) -> TrainingJob:
    """A training on the labels of 12 prompts, with so many valid ones, that no test has started."""
    shards = write_shards(folder / "shards", train=12, valid=valid, test=1, long=False, letters=True)
    files = tuple(sorted((shards / "train").glob("*.parquet")))
    pl.read_parquet(shards / "valid" / "*.parquet").write_parquet(folder / "evaluation.parquet")
    write_tiny_llama(files, folder / "base", TINY, seed=1)
    return TrainingJob(
        out=folder,
        train=files,
        evaluation=folder / "evaluation.parquet",
        select=folder / "evaluation.parquet",
        prior=PRIOR,
        answer_style="letters",
        base=str(folder / "base"),
        hub_revision=None,
        base_name="tiny",
        settings=SETTINGS.model_copy(update={"objective": "listwise", **changes}),
        seed=5,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    return label_job(tmp_path_factory.mktemp("labels"), valid=4)


@pytest.fixture(scope="module")
def trained(world: TrainingJob, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    job = changed(world, tmp_path_factory.mktemp("trained"))
    job.scratch.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        keep_on_the_cpu(patch)
        write_token_files(job)
        train(job)
    result = json.loads(job.result.read_text())
    return Trained(job, result["facts"], result["history"], [])


def untrained_loss(job: TrainingJob, *, residual: float | None) -> float:
    """Mean cross-entropy of the answer over the labels' logits of whole forward passes, one prompt at a time."""
    assert job.evaluation is not None
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    losses = []
    for row in pl.read_parquet(job.evaluation).iter_rows(named=True):
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
        scores = logits[tokenizer.convert_tokens_to_ids(row["candidate_letters"])].double().numpy()
        if residual:
            places = [row["retrieved"].index(film) for film in row["candidates"]]
            scores = residual * (scores - scores.mean()) + np.array(PRIOR)[places]
        answer = row["candidates"].index(row["answers"][0])
        losses.append(np.logaddexp.reduce(scores) - scores[answer])
    return float(np.mean(losses))


@pytest.mark.parametrize(("residual", "batch"), [(1.0, 1), (1.0, 3), (0.2, 3), (None, 3)])
def test_the_evaluation_loss_is_that_of_the_scores_that_are_ranked_by(world, tmp_path, capsys, residual, batch):
    settings = {"global_batch": 2 * batch, "per_device_train_batch_size": batch, "num_train_epochs": 0.1}
    settings |= {"residual": residual is not None}
    settings |= {"residual_weight": residual} if residual else {}
    facts = run(changed(world, tmp_path, settings), capsys).facts
    assert facts["eval_loss_before"] == pytest.approx(untrained_loss(world, residual=residual), rel=1e-5)


@pytest.mark.parametrize("objective", ["listwise", "ranknet", "lambdarank"])
def test_training_lowers_the_loss_and_weighs_the_scores(world, tmp_path, capsys, objective):
    found = run(changed(world, tmp_path, {"objective": objective, "num_train_epochs": 8}), capsys)
    losses = [loss for _, loss in found.logged("loss")]
    assert losses[-1] < losses[0]
    assert 0 <= found.facts["weight"] <= 4
    assert found.facts["select_examples"] == 4
    assert found.facts["select_loss"] <= found.facts["select_loss_retriever"]


def test_answers_share_the_target_by_their_rating_where_a_run_asks_for_it(world, tmp_path):
    """A like of 5 stars counts 31, one of 4 stars 15; the order of the candidates is the one shown."""
    made = {}
    for name in ("even", "rating"):
        job = changed(world, tmp_path / name, {"targets": name})
        assert ("answer_ratings" in job.columns) == (name == "rating")
        write_token_files(job)
        made[name] = read_token_files(job, TRAIN)
    rows = pl.concat(pl.read_parquet(file) for file in world.train)
    for place, row in enumerate(rows.iter_rows(named=True)):
        stars = dict(zip(row["answers"], row["answer_ratings"], strict=True))
        assert len(set(stars.values())) > 1
        gains = np.array([2 ** stars[film] - 1 if film in stars else 0 for film in row["candidates"]])
        assert made["rating"]["targets"][place] == pytest.approx(gains / gains.sum())
        assert made["even"]["targets"][place] == [0.2 if film in stars else 0.0 for film in row["candidates"]]


def test_targets_by_rating_train_another_adapter(world, trained, tmp_path, capsys):
    weights = run(changed(world, tmp_path, {"targets": "rating"}), capsys).weights()
    assert any(not torch.equal(weights[name], tensor) for name, tensor in trained.weights().items())


@pytest.mark.parametrize("batch", [2, 6])
def test_a_step_may_be_cut_into_batches_as_memory_asks(world, trained, tmp_path, capsys, batch):
    """Six examples a step, here as 3 x 2 or 1 x 6, there as 2 x 3: the same sums in another order."""
    settings = {"per_device_train_batch_size": batch}
    ours, theirs = run(changed(world, tmp_path, settings), capsys).weights(), trained.weights()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_a_training_goes_on_from_its_last_whole_checkpoint_to_the_same_weights(world, trained, tmp_path, capsys):
    job = changed(world, tmp_path)
    shutil.copytree(trained.job.checkpoints, job.checkpoints)
    shutil.rmtree(job.checkpoints / "checkpoint-8")
    resumed = run(job, capsys)
    assert resumed.facts["resumed_from_step"] == 6
    ours, theirs = resumed.weights(), trained.weights()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.facts["weight"] == trained.facts["weight"]
    assert resumed.logged("loss") == trained.logged("loss")


def test_weights_are_read_in_the_format_that_the_processor_has(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tripletune.precision.has_bfloat16", lambda: True)
    loaded = []
    read = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained",
        lambda *arguments, **named: loaded.append(read(*arguments, **named)) or loaded[-1],
    )
    facts = run(changed(world, tmp_path, {"model": "some/model", "num_train_epochs": 1}), capsys).facts
    assert facts["dtype"] == "bfloat16"
    assert loaded[0].lm_head.weight.dtype == torch.bfloat16
    assert facts["eval_loss_before"] == pytest.approx(untrained_loss(world, residual=1.0), rel=2e-2)


def test_labels_of_several_tokens_are_refused(world, tmp_path, capsys):
    rows = pl.concat(pl.read_parquet(file) for file in world.train)
    strange = rows.with_columns(candidate_letters=pl.lit([f"Q{number}Z" for number in range(20)]))
    strange.write_parquet(tmp_path / "strange.parquet")
    with pytest.raises(TrainingError, match=r"cuts labels of 20 candidates into several tokens; lower"):
        run(changed(world, tmp_path / "out", train=(tmp_path / "strange.parquet",)), capsys)


def test_an_example_without_an_answer_among_its_candidates_is_refused_by_name(world, tmp_path, capsys):
    rows = pl.concat(pl.read_parquet(file) for file in world.train)
    missed = pl.col("example_id") == "3:train:15"
    nobody = pl.when(missed).then(pl.lit([9999], pl.List(pl.Int32))).otherwise("answers")
    rows.with_columns(answers=nobody).write_parquet(tmp_path / "missed.parquet")
    with pytest.raises(TrainingError, match=r"3:train:15 has no answer among its candidates, .*; generate the prompts"):
        run(changed(world, tmp_path / "out", train=(tmp_path / "missed.parquet",)), capsys)


def test_an_example_that_sets_the_weight_and_does_not_fit_is_refused_before_the_first_step(world, tmp_path, capsys):
    assert world.select is not None
    rows = pl.read_parquet(world.select)
    longer = pl.element().struct.with_fields(pl.field("content") + " and so on" * 200)
    rows.with_columns(pl.col("prompt").list.eval(longer)).write_parquet(tmp_path / "longer.parquet")
    job = changed(world, tmp_path / "out", select=tmp_path / "longer.parquet")
    with pytest.raises(TrainingError, match=r"4 of 4 examples are longer than finetune\.max_length = 1024"):
        run(job, capsys)
    assert not list(job.checkpoints.glob("*"))
    assert '"kind": "log"' not in capsys.readouterr().out


def test_without_users_who_select_the_sum_that_was_trained_is_served(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", train=12, valid=0, test=6, long=False, letters=True)
    contracts = {}
    for residual in (True, False):
        adapter = tmp_path / f"adapter-{residual}"
        adapter.mkdir()
        changes = {"objective": "listwise", "residual": residual, "num_train_epochs": 1.0}
        facts = finetune_adapter(shards, adapter, LAUNCHED.model_copy(update=changes), LETTERS_CONTRACT, {}, 0)
        assert "weight" not in facts
        contracts[residual] = read_contract(adapter).residual
    assert contracts[False] is None
    assert contracts[True] is not None
    assert contracts[True].weight == 1.0
    served = rank_examples(
        pl.read_parquet(shards / "test" / "*.parquet"),
        tmp_path / "adapter-True",
        tuned=True,
        constrained=True,
        batch_size=4,
    )
    assert set(served["system"]) == {"tuned+retriever"}


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Shards, an adapter trained by the stage, and its predictions."""
    folder = tmp_path_factory.mktemp("ranked")
    shards = write_shards(folder / "shards", train=40, valid=12, test=12, long=False, letters=True)
    adapter, rank = folder / "adapter", folder / "rank"
    for path in (adapter, rank):
        path.mkdir()
    settings = LAUNCHED.model_copy(update={"objective": "listwise", "num_train_epochs": 6.0})
    finetune_adapter(shards, adapter, settings, LETTERS_CONTRACT, {}, 0)
    rank_shards(shards, adapter, rank, RankConfig(batch_size=5, unconstrained_viewers=4), LETTERS_CONTRACT, 0)
    return shards, adapter, rank


def test_ranking_scores_every_candidate_with_and_without_the_retriever(ranked: tuple[Path, Path, Path]) -> None:
    _, adapter, rank = ranked
    contract = read_contract(adapter)
    assert contract.objective == "listwise"
    assert contract.residual is not None
    assert len(contract.residual.prior) == 20
    rows = pl.read_parquet(rank / "predictions.parquet").filter(pl.col("constrained"))
    found = set(rows.select(pl.col("purpose").cast(pl.String), "system").iter_rows())
    assert found == {(purpose, system) for purpose in ("valid", "test") for system in (*ALWAYS, SERVED)}
    assert rows.filter(pl.col("answers").list.n_unique() != 20).is_empty()
    scored = rows.filter(pl.col("scores").is_not_null())
    assert set(scored["system"]) == {"untuned", "tuned", "tuned+retriever"}
    assert all(scores == sorted(scores, reverse=True) for scores in scored["scores"].to_list())


def test_a_prompt_is_ranked_alone_as_among_others_and_as_served(ranked: tuple[Path, Path, Path]) -> None:
    shards, adapter, rank = ranked
    examples = pl.read_parquet(shards / "test" / "*.parquet")
    rows = pl.read_parquet(rank / "predictions.parquet").filter(purpose="test", constrained=True)
    for tuned, system in ((True, "tuned+retriever"), (False, "untuned")):
        alone = rank_examples(examples, adapter, tuned=tuned, constrained=True, batch_size=1)
        assert set(alone["system"]) == {system}
        written = rows.filter(pl.col("system") == system).sort("user_id")
        alone_EC, written_EC = alone.sort("user_id")["scores"].to_list(), written["scores"].to_list()
        np.testing.assert_allclose(alone_EC, written_EC, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # test_sharded.py compares two processes with one as well
def test_two_processes_learn_what_one_learns_from_batches_of_twice_the_size(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", train=24, valid=9, test=1, long=False, letters=True)
    adapters, facts = [], []
    for config, batch in (("single.yaml", 8), ("cpu-2.yaml", 4)):
        out = tmp_path / config
        out.mkdir()
        changes = {
            "accelerate_config": str(ACCELERATE / config),
            "global_batch": 8,
            "per_device_train_batch_size": batch,
            "objective": "listwise",
        }
        facts.append(finetune_adapter(shards, out, LAUNCHED.model_copy(update=changes), LETTERS_CONTRACT, {}, 0, None))
        adapters.append(load_file(out / "adapter" / "adapter_model.safetensors"))
    one, two = facts
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-4)
    assert two["weight"] == pytest.approx(one["weight"], abs=1e-2)
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-4, atol=1e-5)
