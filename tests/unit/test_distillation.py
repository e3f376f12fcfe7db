"""The teacher's part of the loss against sums written out, and its scores looked up by film."""
# Shape letters in this file: B examples, C candidates

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tripletune.config import FinetuneConfig
from tripletune.config.presets import parse_config
from tripletune.errors import ConfigError, TrainingError
from tripletune.finetune.distillation import Distillation, read_taught, taught_scores
from tripletune.finetune.label_batches import pad_labels
from tripletune.finetune.label_loss import combined_scores, listwise_loss
from tripletune.schemas.teach import TAUGHT

STUDENT = [[1.0, -2.0, 0.5, 3.0], [0.0, 4.0, -1.0, 9.0]]
TEACHER = [[0.3, 2.0, -1.5, 0.1], [5.0, 1.0, 2.0, -7.0]]
TARGET = [[0.5, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]]
SHOWN = [4, 3]
"""The fourth candidate of the second example is padding."""


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def mixed(weight: float, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of each example, and the gradient of their sum by the student's logits."""
    logits_BC = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
    shown_BC = torch.arange(4)[None] < torch.tensor(SHOWN)[:, None]
    score_BC = combined_scores(logits_BC, shown_BC, None)
    hard_B = listwise_loss(score_BC, torch.tensor(TARGET, dtype=torch.float64))
    taught_BC = torch.tensor(TEACHER, dtype=torch.float64)
    loss_B = Distillation(weight, temperature).mix(hard_B, score_BC, taught_BC, shown_BC)
    (gradient_BC,) = torch.autograd.grad(loss_B.sum(), logits_BC)
    return loss_B.detach(), gradient_BC


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_loss_and_gradient_are_those_of_the_formula(weight: float, temperature: float) -> None:
    loss_B, gradient_BC = mixed(weight, temperature)
    for row, shown in enumerate(SHOWN):
        student, teacher = np.array(STUDENT[row][:shown]), np.array(TEACHER[row][:shown])
        target = np.array(TARGET[row][:shown])
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        hard = -(target * np.log(softmax(student))).sum()
        divergence, entropy = (p * np.log(p / q)).sum(), -(p * np.log(p)).sum()
        want = (1 - weight) * hard + weight * temperature**2 * (divergence + entropy)
        assert loss_B[row].item() == pytest.approx(want, rel=1e-12)
        slope = (1 - weight) * (softmax(student) - target) + weight * temperature * (q - p)
        np.testing.assert_allclose(gradient_BC[row, :shown], slope, rtol=1e-9, atol=1e-12)
        assert gradient_BC[row, shown:].eq(0).all()


def test_a_case_worked_by_hand() -> None:
    """The teacher says three to one, the student knows nothing: ln 2, and a quarter is to be moved."""
    shown_BC = torch.ones(1, 2, dtype=torch.bool)
    for temperature, size in ((1.0, 1.0), (2.0, 2.0)):
        score_BC = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        taught_BC = torch.tensor([[temperature * math.log(3), 0.0]], dtype=torch.float64)
        nothing_B = torch.full((1,), 99.0, dtype=torch.float64)
        loss_B = Distillation(1.0, temperature).mix(nothing_B, score_BC, taught_BC, shown_BC)
        assert loss_B.item() == pytest.approx(temperature**2 * math.log(2))
        loss_B.sum().backward()
        assert score_BC.grad is not None
        assert score_BC.grad.flatten().tolist() == pytest.approx([-size / 4, size / 4])


def test_a_teacher_that_knows_nothing_asks_for_equal_shares() -> None:
    score_BC = torch.tensor([STUDENT[0]], dtype=torch.float64)
    shown_BC = torch.ones(1, 4, dtype=torch.bool)
    loss_B = Distillation(1.0, 1.0).mix(torch.zeros(1), score_BC, torch.full((1, 4), 7.0), shown_BC)
    assert loss_B.item() == pytest.approx(-np.log(softmax(np.array(STUDENT[0]))).mean())


def test_a_student_with_the_teachers_scores_has_nothing_to_learn_from_it() -> None:
    score_BC = torch.tensor([TEACHER[0]], dtype=torch.float64, requires_grad=True)
    shifted_BC = score_BC.detach() + 5  # a softmax does not see it
    loss_B = Distillation(1.0, 3.0).mix(torch.zeros(1), score_BC, shifted_BC, torch.ones(1, 4, dtype=torch.bool))
    loss_B.sum().backward()
    assert score_BC.grad is not None
    assert score_BC.grad.abs().max() < 1e-12


def test_scores_are_looked_up_by_film_wherever_a_prompt_shows_it(tmp_path: Path) -> None:
    rows = [("1:train:9", [7, 5, 6], [3.0, 2.0, 1.0]), ("2:train:9", [5, 6, 8], [0.5, 0.25, -4.0])]
    pl.DataFrame(rows, TAUGHT, orient="row").write_parquet(tmp_path / "shard-000.parquet")
    taught = read_taught(tmp_path / "shard-000.parquet")
    shown = {"example_id": ["2:train:9", "1:train:9"], "candidates": [[8, 5, 6], [5, 6, 7]]}
    assert taught_scores(shown, taught) == [[-4.0, 0.5, 0.25], [2.0, 1.0, 3.0]]


@pytest.mark.parametrize(
    ("example", "films"), [("3:train:9", [7, 5, 6]), ("1:train:9", [7, 5, 9]), ("1:train:9", [7, 5])]
)
def test_an_example_that_the_teacher_saw_otherwise_is_refused_in_one_line(example: str, films: list[int]) -> None:
    taught = {"1:train:9": {7: 3.0, 5: 2.0, 6: 1.0}}
    with pytest.raises(TrainingError, match=rf"no scores of the candidates of example {example}: .*teach") as caught:
        taught_scores({"example_id": [example], "candidates": [films]}, taught)
    assert "\n" not in str(caught.value)


def test_a_batch_holds_the_scores_that_its_examples_have() -> None:
    def example(taught: list[float]) -> dict[str, list[float]]:
        places = list(range(len(taught)))
        return {"input_ids": [1, 2], "label_ids": places, "targets": [1.0, *places[1:]], "places": places}

    rows = [example(taught) | {"taught": taught} for taught in ([3.0, 1.0], [2.0, 1.0, 4.0])]
    assert pad_labels(rows, 0, [0.0] * 3)["taught"].tolist() == [[3.0, 1.0, 0.0], [2.0, 1.0, 4.0]]
    without = pad_labels([example([3.0])], 0, [0.0])
    assert "taught" not in without


def test_a_teacher_needs_scores_of_labels_to_compare_with() -> None:
    with pytest.raises(ConfigError, match="teacher = 'big-1' needs an objective over labels"):
        parse_config({"dataset": "x", "finetune": {"teacher": "big-1"}}, "x.toml")
    assert not FinetuneConfig(objective="listwise").has_teacher
    assert FinetuneConfig(objective="listwise", teacher="big-1").has_teacher
    assert not FinetuneConfig(objective="listwise", teacher="big-1", teacher_weight=0.0).has_teacher
