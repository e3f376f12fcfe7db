"""Losses over labels against sums written out, and the order of the examples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tripletune.finetune.label_loss import combined_scores, lambdarank_loss, listwise_loss, mass_loss, ranknet_loss
from tripletune.finetune.length_batches import LengthBatches
from tripletune.residual import combine

LOGITS = [[1.0, -2.0, 0.5, 3.0], [0.0, 4.0, -1.0, 9.0]]
SHOWN = [[True, True, True, True], [True, True, True, False]]
TARGET = [[0.5, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]]
PRIOR = [[-1.0, -2.0, -3.0, -4.0], [-2.0, -1.0, -3.0, 7.0]]


def tensors():
    logits, target, prior = (torch.tensor(values, dtype=torch.float64) for values in (LOGITS, TARGET, PRIOR))
    return logits.requires_grad_(), torch.tensor(SHOWN), target, prior


def by_hand(row: int, *, prior: bool) -> list[float]:
    """Scores of the candidates shown."""
    logits = [value for value, shown in zip(LOGITS[row], SHOWN[row], strict=True) if shown]
    if not prior:
        return logits
    mean = sum(logits) / len(logits)
    return [value - mean + known for value, known in zip(logits, PRIOR[row], strict=False)]


@pytest.mark.parametrize("prior", [False, True])
def test_the_listwise_loss_is_the_cross_entropy_over_the_candidates_shown(prior: bool) -> None:
    logits_BC, shown_BC, target_BC, prior_BC = tensors()
    loss_B = listwise_loss(combined_scores(logits_BC, shown_BC, prior_BC if prior else None), target_BC)
    for row in range(2):
        scores = by_hand(row, prior=prior)
        total = math.log(sum(math.exp(score) for score in scores))
        want = sum(share * (total - score) for share, score in zip(TARGET[row], scores, strict=False))
        assert loss_B[row].item() == pytest.approx(want)
    loss_B.sum().backward()
    assert logits_BC.grad is not None
    assert torch.isfinite(logits_BC.grad).all()
    assert logits_BC.grad[1, 3] == 0


def test_a_weight_of_the_logits_scales_what_is_added_to_the_prior() -> None:
    logits_BC, shown_BC, _, prior_BC = tensors()
    score_BC = combined_scores(logits_BC, shown_BC, prior_BC, 0.2)
    want = combine(logits_BC.detach().numpy(), prior_BC.numpy(), shown_BC.numpy(), 0.2)
    np.testing.assert_allclose(score_BC.detach().numpy(), want)


@pytest.mark.parametrize("prior", [False, True])
def test_the_ranknet_loss_is_a_mean_over_pairs_of_an_answer_and_another(prior: bool) -> None:
    logits_BC, shown_BC, target_BC, prior_BC = tensors()
    loss_B = ranknet_loss(combined_scores(logits_BC, shown_BC, prior_BC if prior else None), target_BC)
    for row in range(2):
        scores = by_hand(row, prior=prior)
        others = [place for place in range(len(scores)) if not TARGET[row][place]]
        want = sum(
            TARGET[row][hit] * math.log1p(math.exp(scores[other] - scores[hit])) / len(others)
            for hit in range(len(scores))
            for other in others
        )
        assert loss_B[row].item() == pytest.approx(want)
    loss_B.sum().backward()
    assert logits_BC.grad is not None
    assert torch.isfinite(logits_BC.grad).all()
    assert logits_BC.grad[1, 3] == 0


def ndcg(order: list[int], gains: list[float]) -> float:
    """Of a whole list, with the shares as gains."""
    ideal = sum(gain / np.log2(place + 2) for place, gain in enumerate(sorted(gains, reverse=True)))
    return float(sum(gains[film] / np.log2(place + 2) for place, film in enumerate(order)) / ideal)


def pairwise_lambdas(scores: list[float], gains: list[float]) -> tuple[float, list[float]]:
    """LambdaRank's loss and its gradient by score: of each pair the two films are really exchanged in the list."""
    order = sorted(range(len(scores)), key=lambda film: -scores[film])
    loss, gradient = 0.0, [0.0] * len(scores)
    for better in range(len(scores)):
        for worse in range(len(scores)):
            if gains[better] <= gains[worse]:
                continue
            swapped = [{better: worse, worse: better}.get(film, film) for film in order]
            cost = abs(ndcg(order, gains) - ndcg(swapped, gains))
            loss += cost * math.log1p(math.exp(scores[worse] - scores[better]))
            pull = cost / (1 + math.exp(scores[better] - scores[worse]))
            gradient[better] -= pull
            gradient[worse] += pull
    return loss, gradient


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("shares", [TARGET, [[0.8, 0.0, 0.2, 0.0], [0.1, 0.2, 0.7, 0.0]]])
def test_the_lambdarank_loss_weighs_each_pair_by_the_ndcg_of_exchanging_it(
    prior: bool, shares: list[list[float]]
) -> None:
    logits_BC, shown_BC, _, prior_BC = tensors()
    score_BC = combined_scores(logits_BC, shown_BC, prior_BC if prior else None)
    score_BC.retain_grad()
    loss_B = lambdarank_loss(score_BC, torch.tensor(shares, dtype=torch.float64))
    loss_B.sum().backward()
    assert score_BC.grad is not None
    assert logits_BC.grad is not None
    for row in range(2):
        scores = by_hand(row, prior=prior)
        want, gradient = pairwise_lambdas(scores, shares[row][: len(scores)])
        assert loss_B[row].item() == pytest.approx(want)
        assert score_BC.grad[row, : len(scores)].tolist() == pytest.approx(gradient)
    assert logits_BC.grad[1, 3] == 0


def test_pairs_of_equal_scores_are_weighed_in_the_order_shown() -> None:
    loss_B = lambdarank_loss(torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]]))
    shift = (1 - 1 / math.log2(3)) + (1 / math.log2(3) - 1 / 2)
    assert loss_B.item() == pytest.approx(shift * math.log(2))


@pytest.mark.parametrize("loss", [ranknet_loss, lambdarank_loss])
def test_where_all_candidates_are_answers_pairs_ask_for_nothing(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    assert loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.5]])).item() == 0


def test_listwise_and_mass_sum_to_the_cross_entropy_over_the_vocabulary() -> None:
    torch.manual_seed(0)
    logits_BV = torch.randn(1, 9, dtype=torch.float64)
    labels = torch.tensor([[7, 2, 4]])
    logits_BC = logits_BV.gather(1, labels)
    target_BC, shown_BC = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), torch.ones(1, 3, dtype=torch.bool)
    parts_B = listwise_loss(logits_BC, target_BC) + mass_loss(logits_BV, logits_BC, shown_BC)
    torch.testing.assert_close(parts_B, torch.nn.functional.cross_entropy(logits_BV, labels[:, 1], reduction="none"))


def test_each_epoch_holds_every_example_once_and_sorts_those_of_a_step() -> None:
    lengths = torch.randint(50, 900, (1003,), generator=torch.Generator().manual_seed(1)).tolist()
    batches = LengthBatches(lengths, per_step=8, seed=3)
    first = list(batches)
    assert sorted(first) == list(range(1003))
    assert list(batches) == first
    steps = [[lengths[place] for place in first[start : start + 8]] for start in range(0, 1000, 8)]
    spread = sorted(max(step) - min(step) for step in steps)
    assert spread[len(spread) // 2] < 40
    starts = [step[0] for step in steps[:50]]
    assert starts != sorted(starts, reverse=True), "steps are not in order of length"
    batches.set_epoch(1)
    assert list(batches) != first
    assert list(LengthBatches(lengths, 8, seed=4)) != first
