"""Base class and field types of the settings sections."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0, le=1000.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
NameOrText = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63}|[^\x00-\x1f]+\.txt)$")]
"""A name, or the path of a text file, which ends in ``.txt``."""


def is_path(text: str) -> bool:
    """Whether a ``NameOrText`` is a path."""
    return text.endswith(".txt")


class Section(BaseModel):
    """Frozen group of settings; unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")
