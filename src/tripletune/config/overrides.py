"""Settings given as ``section.key=value``, in place of a preset's: the option ``--set`` and its likes."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, get_origin

from tripletune.config.base import Section
from tripletune.config.run import RunConfig
from tripletune.errors import ConfigError

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Override:
    """One setting, not yet validated."""

    key: str
    """Dotted name, such as ``source.feed.ratings``; it exists."""
    value: Any
    given: str
    """As it was given."""


def parse_override(given: str) -> Override:
    """Read ``section.key=value``.

    The value is TOML; what is no TOML and does not begin like a string, list or table is text, so that paths and words
    need no quotes. Nothing after the equals sign is the empty text.

    Raises:
        ConfigError: it has another form, no setting has this name (the message has the nearest one), or the name is a
            section's.
    """
    key, equals, text = given.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not _KEY.fullmatch(key) or not given.isprintable():
        raise ConfigError(f"--set {given!r}: write section.key=value, such as retrieve.triple_choice=random")
    _require_setting(key, given)
    return Override(key, _read(text, given), given)


def _read(text: str, given: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if text.startswith(('"', "'", "[", "{")):
            raise ConfigError(f"--set {given!r}: the value is no TOML ({error}); quote texts inside lists") from None
        return text


def _require_setting(key: str, given: str) -> None:
    section: type[Section] = RunConfig
    parts = key.split(".")
    for depth, part in enumerate(parts):
        field = section.model_fields.get(part)
        if field is None:
            raise ConfigError(f"--set {given}: there is no setting {key}; {_instead(section, part, key)}")
        if not _is_section(field.annotation):
            if len(parts) > depth + 1 and get_origin(field.annotation) is not dict:
                name = ".".join(parts[: depth + 1])
                raise ConfigError(f"--set {given}: {name} is a setting and no section; did you mean {name}=...?")
            return
        section = field.annotation
    keys = ", ".join(sorted(section.model_fields))
    raise ConfigError(f"--set {given}: {key} is a section; name one of its keys: {keys}")


def _instead(section: type[Section], part: str, key: str) -> str:
    if part in section.renamed:
        return f"its place took {section.renamed[part]}"
    names = list(_names(RunConfig))
    last = key.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == last]  # the right key in another section
    return f"did you mean {difflib.get_close_matches(key, same or names, n=1, cutoff=0.0)[0]}?"


def _names(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    for name, field in section.model_fields.items():
        if _is_section(field.annotation):
            yield from _names(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def apply_overrides(data: dict[str, Any], overrides: Sequence[Override], where: str) -> None:
    """Write settings into a preset's plain data; of two with one name the last holds.

    Raises:
        ConfigError: the preset has something else than a table where a setting's section belongs.
    """
    for one in overrides:
        *sections, name = one.key.split(".")
        table = data
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{where}: '{section}' should be a table; --set {one.given} sets a key of it")
        table[name] = one.value


def only_store(overrides: Sequence[str]) -> None:
    """Refuse settings that a run which is gone on with would ignore: its own hold, but for ``[store]``.

    Raises:
        ConfigError: a setting of another section is given.
    """
    for given in overrides:
        if not given.startswith("store."):
            raise ConfigError(f"--set {given}: a run that is gone on with keeps its settings; only [store] is read")
