"""Curriculum: plain examples first, then more and more of them with behaviour tokens (LLaRA, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from tripletune.finetune.length_batches import LengthBatches

_DRAWS = 1
"""Next to seed and epoch, so that these draws have nothing in common with the order of the examples."""


class Curriculum(Sampler[int]):
    """Examples in the order of ``batches``, of which a rising share is drawn in the form with behaviour tokens.

    The dataset holds the plain form of all N examples and then, in the same order, the other form. The share depends
    on the place in the training alone: it is the same for any number of processes, and after a resume.

    Args:
        batches: order of the examples.
        per_step: examples of an optimiser step.
        epochs: of the training.
        rising: share of the training at whose end all examples have behaviour tokens.
        seed: of the draws.
    """

    def __init__(self, batches: LengthBatches, per_step: int, epochs: float, rising: float, seed: int) -> None:
        self._batches, self._per_step, self._epochs = batches, per_step, epochs
        self._rising, self._seed, self._epoch = rising, seed, 0

    def __len__(self) -> int:
        return len(self._batches)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self._epoch = epoch
        self._batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        number = len(self)
        draw = np.random.default_rng([self._seed, self._epoch, _DRAWS]).random(number)
        for place, example in enumerate(self._batches):
            before = self._epoch * number + place // self._per_step * self._per_step
            share = before / (self._epochs * number * self._rising) if self._rising else 1.0
            yield example + number if draw[example] < share else example
