"""Settings of the short forms of prompts, and of how the answers to all forms become one order."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from tripletune.config.base import Section, Weight

FORMS = ("pointwise", "pairwise")


class EnsembleConfig(Section):
    """RecRanker's mixture: short forms of each query's prompt next to its list, which the model is trained on too and
    which decide over the order with it. A candidate's utility is the weighted sum of three, each between 0 and 1."""

    forms: tuple[Literal["pointwise", "pairwise"], ...] = ()
    """pointwise: whether the user will like a film; pairwise: which of two films. Both need a template that has their
    questions, such as ``recranker``. Empty: the list alone is asked, and the weights below mean nothing."""
    listwise: Weight = 1.0
    """Weight of the place in the list's answer: 1 for the first, 4/5 for the second, and so on; 0 from the sixth on."""
    pointwise: Weight = 1.0
    """Weight of the probability of Yes, against No."""
    pairwise: Weight = 1.0
    """Weight of the share of its two comparisons that a film wins."""

    @field_validator("forms")
    @classmethod
    def _names_each_once(cls, forms: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(forms)) < len(forms):
            raise ValueError(f"{list(forms)} names a form twice; name each once")
        return tuple(form for form in FORMS if form in forms)

    @model_validator(mode="after")
    def _weighs_something(self) -> EnsembleConfig:
        if self.forms and not any(self.weights.values()):
            raise ValueError(f"the weights of {', '.join(self.weights)} are all 0; raise one of them")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weight of the list and of each short form."""
        return {form: getattr(self, form) for form in ("listwise", *self.forms)}
