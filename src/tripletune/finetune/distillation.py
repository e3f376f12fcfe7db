# Shape letters in this file: B examples of a batch, C candidates
"""Learning from the scores of a teacher, a larger tuned model: ``finetune.teacher``.

Distillation (Hinton, Vinyals and Dean, 2015, https://arxiv.org/abs/1503.02531) over an example's candidates in place of
classes, as for rankings in RankDistil (Reddi et al., AISTATS 2021):

    loss = (1 - weight) * objective + weight * T ** 2 * cross-entropy(softmax(teacher / T), softmax(student / T))

The cross-entropy is the Kullback-Leibler divergence of the student from the teacher plus the teacher's entropy, which
has no gradient. ``T ** 2`` keeps the size of the gradient, which the temperature divides twice. The scores of both are
those that order the candidates: where the loss is taken over the sum with the retriever's log-score
(``finetune.residual``), the student's is this sum, and a teacher that serves such a sum is read as it serves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tripletune.errors import TrainingError
from tripletune.finetune.label_loss import listwise_loss
from tripletune.schemas.base import conform
from tripletune.schemas.teach import TAUGHT
from tripletune.store.read import read_parquet

Taught: TypeAlias = dict[str, dict[int, float]]
"""Scores of the candidates by film, for each example id."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a teacher's scores enter the loss."""

    weight: float
    """Share of the teacher's part, from 0 to 1."""
    temperature: float

    def mix(self, loss_B: Tensor, score_BC: Tensor, taught_BC: Tensor, shown_BC: Tensor) -> Tensor:
        """The objective's loss with the teacher's part; shape (B,).

        Args:
            loss_B: of the objective.
            score_BC: the student's, minus infinity where no candidate is shown.
            taught_BC: the teacher's; anything where no candidate is shown.
            shown_BC: which places hold a candidate.
        """
        share_BC = torch.softmax(taught_BC.masked_fill(~shown_BC, -torch.inf) / self.temperature, dim=1)
        soft_B = self.temperature**2 * listwise_loss(score_BC / self.temperature, share_BC)
        return (1 - self.weight) * loss_B + self.weight * soft_B


def read_taught(path: Path) -> Taught:
    """The teacher's scores of a shard's examples."""
    rows = conform(read_parquet(path), TAUGHT)
    return {example: dict(zip(films, scores, strict=True)) for example, films, scores in rows.iter_rows()}


def taught_scores(rows: Mapping[str, Sequence[Any]], taught: Taught) -> list[list[float]]:
    """The teacher's scores of each example's candidates, in the order shown.

    Args:
        rows: ``example_id`` and ``candidates`` of the shards.
        taught: of the same shard.

    Raises:
        TrainingError: the teacher has not scored an example, or has scored other candidates.
    """
    found = []
    for example, shown in zip(rows["example_id"], rows["candidates"], strict=True):
        scores = taught.get(example, {})
        if scores.keys() != set(shown):
            raise TrainingError(
                f"the teacher has no scores of the candidates of example {example}: {len(scores)} films in place of "
                f"the {len(shown)} shown; remove the output of the stage teach and run it again"
            )
        found.append([scores[film] for film in shown])
    return found
