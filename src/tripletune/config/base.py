"""Base class and field types of the settings sections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Weight = Annotated[float, Field(ge=0.0, le=1000.0)]
_NAME, _LONGEST_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$", 64
Filled = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=_NAME, max_length=_LONGEST_NAME)]


def is_path(text: str) -> bool:
    """Whether a ``NameOrText`` is a path."""
    return text.endswith(".txt")


def _name_or_path(text: str) -> str:
    is_name = re.search(_NAME, text) is not None and len(text) <= _LONGEST_NAME
    if not text.isprintable() or not (is_name or is_path(text)):
        raise ValueError(f"{text!r} is neither a name (letters, digits and . _ -) nor a path that ends in .txt")
    return text


NameOrText = Annotated[str, AfterValidator(_name_or_path)]
"""A name, or the path of a text file, which ends in ``.txt``."""


class Section(BaseModel):
    """Frozen group of settings; unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    renamed: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions, and what took their place, for the message."""
