"""Files of the worked examples, which stand in every prompt of a run: ``generate/worked/``.

``examples.parquet`` has ``EXAMPLES`` of each as a training example, in the order shown, and ``text.txt`` what stands in
the prompts. They are the same for all users, so they say nothing of the user who is asked about.
"""

from __future__ import annotations

from dataclasses import dataclass

WORKED_ROWS, WORKED_TEXT = "worked/examples.parquet", "worked/text.txt"


@dataclass(frozen=True, slots=True)
class WorkedExamples:
    """The worked examples of a run, as prompts need them."""

    text: str
    """What stands in every prompt, without a line break at its ends."""
    ids: tuple[str, ...]
    """``example_id`` of each, in the order shown."""
    users: tuple[int, ...]
    """Their users, who have no training example besides: its answer would stand in its prompt."""
