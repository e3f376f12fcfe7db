"""Settings of probe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tripletune.config.base import Section

Perturbation = Literal[
    "like-removed",
    "history-shuffled",
    "candidates-reshuffled",
    "articles-moved",
    "years-missing",
    "instruction-paraphrased",
]


class ProbeConfig(Section):
    """What the language model relies on, and how stable its answers are."""

    users: Annotated[int, Field(ge=0)] = 0
    """Users per purpose whose prompts are changed and scored again: the first by hash, once of those whose answer is a
    candidate (reliance) and once of all (stability). 0: there is no stage ``probe``. A user costs up to 16
    prompts, and up to 2 for each fact."""
    purposes: tuple[Literal["train", "valid", "test"], ...] = ("test",)
    """Whose examples are probed. Rows of ``train`` may serve to learn which facts help; those of valid and test only to
    report it."""
    facts: Annotated[int, Field(ge=0)] = 4
    """Facts of hint 2 that are dropped one by one, of each example, a stable draw; 0: none."""
    swap_facts: bool = True
    """Whether each of these is also replaced by another film's fact of the same relation."""
    perturbations: tuple[Perturbation, ...] = (
        "like-removed",
        "history-shuffled",
        "candidates-reshuffled",
        "articles-moved",
        "years-missing",
        "instruction-paraphrased",
    )
    """Changes that should not matter much, under which the order of the candidates is compared; empty: no stability."""

    @model_validator(mode="after")
    def _names_once(self) -> ProbeConfig:
        for name in ("purposes", "perturbations"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {list(values)} names a value twice; name each once")
        if not self.purposes:
            raise ValueError("purposes = [] probes nothing; name train, valid or test, or set users to 0")
        return self
