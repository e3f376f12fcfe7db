"""An ablation set: a TOML file with a base config and members, each with what it changes and why."""

from __future__ import annotations

import json
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator

from tripletune.config import Name, Section
from tripletune.config.base import Filled
from tripletune.errors import ConfigError
from tripletune.flatten import flatten

BASE = "base"
"""Name of the unchanged run, with which every member is compared."""


def _as_overrides(value: Any) -> Any:
    """A table of settings as ``section.key=value``, the form that every command takes; a list stays as it is."""
    if not isinstance(value, dict):
        return value
    return [f"{key}={_as_toml(setting)}" for key, setting in flatten(value).items()]


def _as_toml(value: Any) -> str:
    return value.isoformat() if isinstance(value, date) else json.dumps(value, ensure_ascii=False)


class Member(Section):
    """One change."""

    name: Name
    """In tags and tables; ``base`` is taken."""
    why: Filled
    """What it asks, in one line."""
    set: tuple[str, ...] = ()
    """Settings it changes, as ``section.key=value`` or as a table. Nothing: it is the base's own run, read at another
    row."""
    row: str = ""
    """Row of its run that is compared, such as ``untuned``; empty: the set's."""

    read_table = field_validator("set", mode="before")(_as_overrides)


class AblationSet(Section):
    """A set as its file has it."""

    why: Filled
    """What the set asks, in one line."""
    config: str = ""
    """The base preset; a relative path starts at the working directory, at the set's folder or at those above it.
    Empty: it is given on the command line."""
    set: tuple[str, ...] = ()
    """Settings of the base and of all members."""
    row: str = ""
    """Row of the runs that is compared; empty: what a run serves, ``tuned+retriever`` or ``tuned``."""
    metrics: tuple[str, ...] = ()
    """Metrics of the family; empty: all, which makes every single test weaker."""
    member: tuple[Member, ...]
    """The members, in the order in which they run."""

    read_table = field_validator("set", mode="before")(_as_overrides)

    @field_validator("member")
    @classmethod
    def _names_differ(cls, members: tuple[Member, ...]) -> tuple[Member, ...]:
        names = [BASE, *(member.name for member in members)]
        if len(names) == 1:
            raise ValueError("there is no [[member]]; add one")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"the name {twice[0]!r} is there twice ({BASE!r} is the unchanged run's); give each its own"
            )
        return members


def load_set(path: Path) -> AblationSet:
    """Read a set.

    Raises:
        ConfigError: the file is missing or no TOML, or a key or value is wrong; one line that names it.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no ablation set {path}; {_shipped_sets()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}; {_shipped_sets()}") from None
    try:
        return AblationSet.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error, data)}") from None


def find_config(found: AblationSet, path: Path, given: str = "") -> Path:
    """The base preset: the one that is given, or the one that the set names, next to its file or above it.

    Args:
        found, path: the set and its file.
        given: on the command line; empty: the set's.

    Raises:
        ConfigError: neither names one.
    """
    if not (given or found.config):
        raise ConfigError(f"{path} names no config; give its base preset with --config")
    named = Path(given or found.config)
    places = () if given else (folder / named for folder in path.resolve().parents)
    return next((place for place in (named, *places) if place.is_file()), named)


def _shipped_sets() -> str:
    folder = Path(__file__).parents[3] / "configs" / "ablations"
    names = ", ".join(sorted(path.name for path in folder.glob("*.toml")))
    return f"sets in configs/ablations: {names}" if names else "the sets are in configs/ablations of the checkout"


def _explain(error: ValidationError, data: dict[str, Any]) -> str:
    """The first mistake in one line; a member is named by its name."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    if len(where) > 1 and where[0] == "member" and where[1].isdigit():
        table = data["member"][int(where[1])]
        name = table.get("name") if isinstance(table, dict) else None
        where = [f"member {name!r}" if name else f"member {int(where[1]) + 1}", *where[2:]]
    named = ", ".join(where)
    if first["type"] == "extra_forbidden":
        section = Member if where[0].startswith("member") else AblationSet
        return f"{named}: unknown key; the keys there are {', '.join(section.model_fields)}"
    if first["type"] == "missing":
        return f"{named} is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    return f"{named}: {message[0].lower()}{message[1:]}"
