"""Order of examples in which those of an optimiser step are of similar length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_STEPS_SORTED = 50
"""Steps whose examples are sorted together: enough to leave almost no padding, few enough to stay a random sample."""


class LengthBatches(Sampler[int]):
    """Random examples, sorted by length among those of ``_STEPS_SORTED`` steps, whose order is random again.

    The order depends on seed, epoch and the examples of a step alone, so it is the same for any number of processes
    and after a resume.

    Args:
        lengths: of each example.
        per_step: examples of an optimiser step, over all processes.
        seed: of the order.
    """

    def __init__(self, lengths: Sequence[int], per_step: int, seed: int) -> None:
        self._lengths = np.array(lengths)
        self._per_step, self._seed, self._epoch = per_step, seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self._seed, self._epoch])
        order, together = random.permutation(len(self)), _STEPS_SORTED * self._per_step
        for start in range(0, len(order), together):
            some = order[start : start + together]
            ordered = some[np.argsort(-self._lengths[some], kind="stable")]
            num_whole = len(ordered) // self._per_step
            whole = ordered[: num_whole * self._per_step].reshape(num_whole, self._per_step)
            yield from random.permutation(whole).flatten().tolist()
            yield from ordered[num_whole * self._per_step :].tolist()
