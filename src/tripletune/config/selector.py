"""Settings of selector."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tripletune.config.base import Positive, PositiveFloat, Section, Share


class SelectorConfig(Section):
    """The learned choice of facts, for ``retrieve.triple_choice = "learned"``."""

    from_run: str = ""
    """Name of the run whose probe is learned from; empty: the newest completed one of the dataset that has probed
    training prompts. Where there is none, the choice is ``personal``."""
    learner: Literal["best", "regression", "reinforce"] = "best"
    """regression: of the reward, weighted by inverse propensity; reinforce: policy gradient with a baseline, weighted
    likewise; best: the one of these that is worth more on training users it was not learned from."""
    ridge: PositiveFloat = 1000.0
    """L2 penalty on the weights, in logged facts. Only the weights' proportions matter to a choice."""
    clip: Annotated[float, Field(ge=1.0)] = 20.0
    """Highest weight of a logged fact relative to a draw from its film's triples; at an exploration of 1 / this or more
    nothing is clipped."""
    min_facts: Positive = 500
    """With fewer logged facts that had an alternative, the choice is ``personal``."""
    min_entropy: Share = 0.5
    """The learned choice is refused where the entropy of its relations is below this share of ``personal``'s."""
    max_relation_share: Share = 0.8
    """It is refused where one relation has more than this share of its choices, and more than under ``personal``."""
