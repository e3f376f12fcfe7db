"""Which parts of a prompt change the answers at all, by the distances that the probe measured."""

from __future__ import annotations

from collections.abc import Mapping

from tripletune.schemas.probe import CONTROL

NOTHING = 1e-3
"""A mean distance below this is none, and one below twice that of ``CONTROL``: sums depend on the batch in their last
bits, which weights in bfloat16 make visible."""


def moves_answers(distances: Mapping[str, float]) -> dict[str, bool]:
    """Whether the answers change without a part, by part; without the control.

    Args:
        distances: mean distance by part, as in ``PROBED``, of one purpose and system.
    """
    least = max(NOTHING, 2 * distances.get(CONTROL, 0.0))
    return {name: distance >= least for name, distance in distances.items() if name != CONTROL}
