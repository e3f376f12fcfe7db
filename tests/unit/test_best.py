"""nDCG of an evaluation against the served order, and which step is the best, kept and waited for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tests.finetune_shards import PROMPT_CONTRACT, write_shards
from tripletune.config import FinetuneConfig
from tripletune.contract import Residual
from tripletune.errors import InputError
from tripletune.evaluate.metrics import score_lists
from tripletune.finetune.best import BestKeeper, best_of, evaluation_facts, restore_published, resumable
from tripletune.finetune.checkpoints import seal
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.label_batches import pad_labels
from tripletune.finetune.label_ndcg import label_ndcg
from tripletune.finetune.launch import finetune_adapter
from tripletune.rank.served import add_retriever

PRIOR = (-0.5, -1.0, -1.0, -1.5, -1.5, -1.5, -1.75, -2.0)
"""With places that score alike, and in quarters, so that sums are exact and many of them are equal."""


def labelled(rng: np.random.Generator, num: int, answers: int) -> dict[str, Any]:
    """A row of ``tokenize_labels`` with films 100, 101 ... shown in this order."""
    targets = np.zeros(num)
    targets[rng.choice(num, size=min(num, answers), replace=False)] = 1 / min(num, answers)
    return {
        "input_ids": [1],
        "label_ids": [0] * num,
        "targets": targets.tolist(),
        "places": rng.permutation(num).tolist(),
    }


@pytest.mark.parametrize("answers", [1, 2])
@pytest.mark.parametrize("weight", [1.0, 0.5, None])
@pytest.mark.parametrize("sizes", [(8, 4, 2), (4, 2)])
def test_the_ndcg_of_an_evaluation_is_that_of_the_served_order(weight, sizes, answers):
    rng = np.random.default_rng(3)
    rows = [labelled(rng, num, answers) for num in rng.choice(sizes, size=60)]
    width = max(len(row["places"]) for row in rows)
    logits_BC = torch.from_numpy(rng.integers(0, 4, size=(60, width)) / 4.0)
    films = [[100 + number for number in range(len(row["places"]))] for row in rows]
    logits = [logits_C[: len(row)].tolist() for logits_C, row in zip(logits_BC, films, strict=True)]
    if weight is None:
        best_first = [np.argsort(-np.array(row), kind="stable") for row in logits]
        lists = pl.Series([np.array(row)[order].tolist() for row, order in zip(films, best_first, strict=True)])
    else:
        retrieved = [np.array(one)[np.argsort(row["places"])].tolist() for one, row in zip(films, rows, strict=True)]
        answered = pl.DataFrame({"answers": films, "scores": logits})
        lists = add_retriever(answered, pl.Series(retrieved), Residual(prior=PRIOR, weight=weight))["answers"]
    relevant = [
        [film for film, share in zip(films[at], row["targets"], strict=True) if share] for at, row in enumerate(rows)
    ]
    want = score_lists(lists, pl.Series(relevant), [5])["ndcg_at_5"].to_numpy()
    got = label_ndcg(logits_BC.float(), pad_labels(rows, pad=0, prior=PRIOR), weight)
    assert 0.1 < want.mean() < 0.95
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-12)


def entry(step: int, ndcg: float | None, loss: float = 2.0) -> dict[str, float]:
    return {"step": step, "eval_loss": loss} | ({} if ndcg is None else {"eval_ndcg": ndcg})


@pytest.mark.parametrize(
    ("evaluations", "step", "waited"),
    [
        ([(0, 0.1, 3.0), (2, 0.3, 2.0), (4, 0.5, 2.5), (6, 0.4, 1.0)], 4, 1),
        ([(2, 0.5, 2.0), (4, 0.5, 1.9), (6, 0.5, 1.9), (8, 0.1, 1.0)], 4, 2),  # a lower loss, then the earlier step
        ([(0, 0.9, 1.0), (2, 0.2, 2.0), (4, 0.1, 2.0)], 2, 1),  # the base model is never the best
        ([(0, None, 1.0), (2, None, 2.0), (4, None, 1.5), (6, None, 1.7)], 4, 1),  # sft: by the loss
    ],
)
def test_the_best_step_has_the_highest_ndcg_then_the_lowest_loss_then_is_the_first(evaluations, step, waited):
    log = [{"step": 1, "loss": 9.0}, *(entry(*evaluation) for evaluation in evaluations)]
    best = best_of(log)
    assert best is not None
    assert (best.step, best.waited) == (step, waited)


def test_before_the_first_evaluation_of_a_step_there_is_no_best():
    assert best_of([{"step": 1, "loss": 9.0}, entry(0, 0.5)]) is None


class Training:
    """The Trainer's side: a model with a trained weight, a log, and what callbacks may ask for."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.job = TrainingJob(
            out=folder,
            train=(),
            evaluation=None,
            base="base",
            hub_revision=None,
            base_name="tiny",
            settings=FinetuneConfig(**settings),
            seed=0,
        )
        self.job.scratch.mkdir(parents=True, exist_ok=True)
        self.model = torch.nn.Linear(2, 2)
        self.model.bias.requires_grad_(False)
        self.state = SimpleNamespace(
            global_step=0, max_steps=100, log_history=[], is_world_process_zero=True, is_local_process_zero=True
        )
        self.begin()

    def begin(self) -> None:
        self.keeper = BestKeeper(self.job)
        self.keeper.on_train_begin(None, self.state, None)

    def evaluate(self, step: int, ndcg: float, loss: float = 2.0) -> SimpleNamespace:
        with torch.no_grad():
            self.model.weight.fill_(float(step))
        self.state.global_step = step
        self.state.log_history.append(entry(step, ndcg, loss))
        control = SimpleNamespace(should_training_stop=False, should_save=True)
        self.keeper.on_evaluate(None, self.state, control, model=self.model)
        return control

    def save(self) -> None:
        folder = self.job.checkpoints / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": self.state.log_history}))
        seal(folder)
        self.keeper.on_save(None, self.state, None)

    def kept(self) -> list[str]:
        return sorted(file.name for file in self.job.best.glob("*"))


def test_the_weights_of_the_best_step_are_kept_and_loaded_back(tmp_path):
    training = Training(tmp_path, keep="best")
    for step, ndcg in ((0, 0.9), (1, 0.2), (2, 0.6), (3, 0.4)):
        training.evaluate(step, ndcg)
    training.model.bias.data.fill_(7.0)
    assert restore_published(training.job, training) == 2
    assert training.model.weight.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert training.model.bias.tolist() == [7.0, 7.0]  # frozen weights are the base model's


def test_the_last_weights_stay_where_nothing_is_to_be_kept(tmp_path):
    training = Training(tmp_path)
    for step, ndcg in ((1, 0.6), (2, 0.4)):
        training.evaluate(step, ndcg)
    assert restore_published(training.job, training) == 2
    assert training.model.weight.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert not training.kept()


def test_what_the_newest_checkpoint_needs_stays_until_there_is_a_newer_one(tmp_path):
    training = Training(tmp_path, keep="best")
    training.evaluate(1, 0.2)
    training.save()
    training.evaluate(2, 0.3)
    training.evaluate(3, 0.4)
    assert training.kept() == ["step-1.safetensors", "step-3.safetensors"]
    (training.job.best / ".step-4.safetensors.part").touch()  # of a writer that was killed
    training.begin()
    training.evaluate(4, 0.1)
    training.save()
    assert training.kept() == ["step-3.safetensors"]


@pytest.mark.parametrize("damage", ["none", "missing", "cut", "another score", "no checkpoint", "last"])
def test_a_checkpoint_is_gone_on_from_only_with_the_weights_of_its_best_step(tmp_path, damage):
    training = Training(tmp_path, keep="last" if damage == "last" else "best")
    training.evaluate(1, 0.2)
    if damage != "no checkpoint":
        training.save()
    file = training.job.best / "step-1.safetensors"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "another score":
        training.state.log_history.clear()
        training.evaluate(1, 0.3)
    resumes = {"none", "last"}
    assert resumable(training.job) == (training.job.checkpoints / "checkpoint-1" if damage in resumes else None)


def test_training_stops_after_the_given_evaluations_without_a_better_one(tmp_path):
    training = Training(tmp_path, patience=2)
    stops = {step: training.evaluate(step, ndcg) for step, ndcg in enumerate((0.9, 0.1, 0.3, 0.2, 0.4, 0.4, 0.1, 0.1))}
    assert {step for step, control in stops.items() if control.should_training_stop} == {6, 7}
    # a checkpoint past the decision would be gone on from
    assert {step for step, control in stops.items() if not control.should_save} == {6, 7}


def test_the_last_step_is_no_early_stop(tmp_path):
    training = Training(tmp_path, patience=1)
    training.state.max_steps = 2
    training.evaluate(1, 0.5)
    control = training.evaluate(2, 0.4)
    assert (control.should_training_stop, control.should_save) == (False, True)
    facts = evaluation_facts(training.state, 2)
    assert facts["stopped_early"] is False
    assert (facts["best_step"], facts["best_ndcg"], facts["eval_ndcg"]) == (1, 0.5, 0.4)


@pytest.mark.parametrize(
    ("ndcg", "loss", "better"), [(0.4, 9.0, True), (0.3, 1.9, True), (0.3, 2.0, False), (0.2, 1.0, False)]
)
def test_facts_say_whether_any_step_beats_the_base_model(tmp_path, ndcg, loss, better):
    training = Training(tmp_path)
    training.evaluate(0, 0.3)
    training.evaluate(1, ndcg, loss)
    facts = evaluation_facts(training.state, 1)
    assert facts["best_beats_start"] is better
    assert (facts["eval_ndcg_before"], facts["eval_loss_before"], facts["stopped_early"]) == (0.3, 2.0, True)


@pytest.mark.parametrize("settings", [{"keep": "best"}, {"patience": 1}])
def test_without_an_example_to_evaluate_on_no_step_can_be_chosen(tmp_path, settings):
    shards = write_shards(tmp_path / "shards", train=2, valid=0, test=0, long=False)
    with pytest.raises(
        InputError, match=r"valid: no example to evaluate on, which finetune\.keep = .* set keep to 'last'"
    ):
        finetune_adapter(shards, tmp_path / "out", FinetuneConfig(**settings), PROMPT_CONTRACT, {}, 0)
