"""Every setting of a run: name, type, default, limits and docstring, from the config models."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from docs.reference.docstrings import attribute_docstrings, table, to_markdown
from tripletune.config import RunConfig

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥", "max_length": "length ≤"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as the reference shows it."""

    section: str
    """Table of the TOML file; empty for the top level."""
    name: str
    type: str
    """Type and limits, such as ``integer ≥ 1``."""
    default: str
    meaning: str

    @property
    def dotted(self) -> str:
        """Name with its section, such as ``split.like``."""
        return f"{self.section}.{self.name}".lstrip(".")


def settings(model: type[BaseModel] = RunConfig, section: str = "") -> Iterator[Setting]:
    """The settings of a config model, its own first and then those of each section below it."""
    meanings = attribute_docstrings(inspect.getsource(model))
    for name, field in model.model_fields.items():
        if _section_of(field) is None:
            yield Setting(section, name, _describe(field), _default(field), meanings.get(name, ""))
    for name, field in model.model_fields.items():
        if inner := _section_of(field):
            yield from settings(inner, f"{section}.{name}".lstrip("."))


def sections(model: type[BaseModel] = RunConfig, section: str = "") -> dict[str, str]:
    """First words about each section: its class's docstring, by dotted name."""
    found = {section: inspect.getdoc(model) or ""}
    for name, field in model.model_fields.items():
        if inner := _section_of(field):
            found |= sections(inner, f"{section}.{name}".lstrip("."))
    return found


def page() -> str:
    """The page "Settings" in Markdown."""
    parts = [
        "# Settings",
        "Generated from the models in `tripletune.config`. A preset is a TOML file: top-level keys, and a table for "
        "each section. What a preset does not name keeps its default. An unknown key or a value outside its limits "
        "ends the command in one line and exit code 2.",
    ]
    every = list(settings())
    for section, about in sections().items():
        rows = [
            (f"`{one.name}`", one.type, one.default, to_markdown(one.meaning))
            for one in every
            if one.section == section
        ]
        if rows:
            parts.append(f"## `[{section}]`" if section else "## Top level")
            parts.append(to_markdown(about))
            parts.append(table(("setting", "type", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    return f"`{_toml(field.default)}`" if field.default is not None else "none"


def _toml(value: Any) -> str:
    """A default as a preset would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _describe(field: FieldInfo) -> str:
    """Type and limits in words."""
    kind, inner = _type(field.annotation)
    return " ".join([kind, ", ".join([*_limits(field.metadata), *inner])]).strip()


def _type(annotation: Any) -> tuple[str, list[str]]:
    """Name of a type, and the limits that its ``Annotated`` parts carry."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *metadata = arguments
        name, limits = _type(base)
        return name, [*_limits(metadata), *limits]
    if origin is Literal:
        return "one of " + _quoted(arguments), []
    if origin in (Union, UnionType):
        values = [value for one in arguments if get_origin(one) is Literal for value in get_args(one)]
        parts = [_type(one) for one in arguments if one is not NoneType and get_origin(one) is not Literal]
        names = [name for name, _ in parts] + ([("" if parts else "one of ") + _quoted(values)] if values else [])
        return " or ".join(names), [limit for _, limits in parts for limit in limits]
    if origin is tuple:
        name, limits = _type(arguments[0])
        return f"list of {name}", [f"each {limit}" for limit in limits]
    if origin is dict:
        name, limits = _type(arguments[1])
        return f"table of {name}", [f"each {limit}" for limit in limits]
    return {"Any": "any value", "str": "text", "float": "number", "int": "integer", "bool": "true or false"}.get(
        annotation.__name__, annotation.__name__
    ), []


def _quoted(values: Iterable[Any]) -> str:
    return ", ".join(f'`"{value}"`' for value in values)


def _limits(metadata: list[Any]) -> list[str]:
    found: list[str] = []
    for one in metadata:
        inner = one.metadata if isinstance(one, FieldInfo) else [one]
        for limit in inner:
            found += [f"{sign} {getattr(limit, name):.12g}" for name, sign in _SIGNS.items() if hasattr(limit, name)]
            if pattern := getattr(limit, "pattern", None):
                found.append(f"matches `{pattern}`")
    return found
