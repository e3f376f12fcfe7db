"""Read a TOML preset, with one-line errors."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from datetime import date, time
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tripletune.config import RunConfig, Section
from tripletune.config.base import is_path
from tripletune.config.overrides import Override, apply_overrides, parse_override
from tripletune.errors import ConfigError


def load_config(path: Path, overrides: Sequence[str] = (), **source: str) -> RunConfig:
    """Read a TOML preset.

    A relative ``finetune.accelerate_config`` or path of ``prompt.template`` that is missing in the working directory is
    looked up next to the preset, so that the checkout's ``configs/`` is found from any directory.

    Args:
        path: the preset.
        overrides: settings in place of the preset's, as ``section.key=value``; of two with one name the last holds.
        source: values for ``[source]`` from the command line; empty ones are ignored.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, a value is out of range, or a source is given
            twice.
    """
    chosen = [parse_override(given) for given in overrides]
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config file {path}; {_shipped_presets()}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give a .toml file; {_shipped_presets()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from None
    for one in chosen:
        if source.get(one.key.removeprefix("source.")) and one.key.startswith("source."):
            raise ConfigError(
                f"--set {one.given} and --{one.key.removeprefix('source.')} name one thing; give one of them"
            )
    apply_overrides(data, chosen, str(path))
    data.setdefault("source", {})
    if isinstance(data["source"], dict):
        data["source"] |= {key: value for key, value in source.items() if value}
    return _found_from_anywhere(parse_config(_with_home(data), str(path), chosen), path)


def _with_home(value: Any) -> Any:
    """Settings with the home folder for the ~ that a path begins with, as a shell has it; no other text begins so."""
    if isinstance(value, dict):
        return {key: _with_home(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_home(one) for one in value]
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def _shipped_presets() -> str:
    folder = Path(__file__).parents[3] / "configs"
    here = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    presets = sorted(path.name for path in folder.glob("*.toml"))
    return f"presets in {here}: {', '.join(presets)}" if presets else "the presets are in configs/ of the checkout"


def _found_from_anywhere(config: RunConfig, preset: Path) -> RunConfig:
    accelerate = _beside(preset, config.finetune.accelerate_config)
    template = _beside(preset, config.prompt.template if is_path(config.prompt.template) else "")
    if accelerate:
        finetune = config.finetune.model_copy(update={"accelerate_config": accelerate})
        config = config.model_copy(update={"finetune": finetune})
    if template:
        config = config.model_copy(update={"prompt": config.prompt.model_copy(update={"template": template})})
    return config


def _beside(preset: Path, name: str) -> str:
    """Path of a file that is missing in the working directory, in the preset's folder or the one above; else empty."""
    named, folder = Path(name), preset.resolve().parent
    if named.exists():
        return ""
    return next((str(path) for path in (folder.parent / named, folder / named) if path.is_file()), "")


def parse_config(data: dict[str, Any], where: str, overrides: Sequence[Override] = ()) -> RunConfig:
    """Validate plain data; ``where`` is its origin in error messages, ``overrides`` are what it has from elsewhere.

    Raises:
        ConfigError: the first error, with origin, key and allowed values.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{_origin(error, where, overrides)}: {explain(error, RunConfig)}") from None


def _origin(error: ValidationError, where: str, overrides: Sequence[Override]) -> str:
    """Where the wrong value stands: in the preset, in an override, or in both where a rule joins several settings."""
    named = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
    for one in reversed(overrides):
        if f"{named}.".startswith(f"{one.key}."):
            return f"--set {one.given}"
    near = [one.given for one in overrides if not named or one.key.startswith(f"{named}.")]
    return " ".join([where, *(f"--set {given}" for given in near)])


def explain(error: ValidationError, settings: type[Section], within: Sequence[str] = ()) -> str:
    """The first mistake of a validation in one line: the key, its value and what is allowed.

    Args:
        error: of ``settings.model_validate``.
        settings: the section that was validated.
        within: the tables that this section stands in, such as ``("models", "itemknn")``.
    """
    first = error.errors(include_url=False)[0]
    kind, message, value = first["type"], first["msg"], first.get("input")
    keys = [str(part) for part in first["loc"]]
    parts = [*within, *keys]
    if kind == "extra_forbidden":
        section = _section(settings, keys[:-1])
        place = f"in [{'.'.join(parts[:-1])}]" if parts[:-1] else "at the top"
        if parts[-1] in section.renamed:
            return f"unknown key '{parts[-1]}' {place}; its place took {section.renamed[parts[-1]]}"
        return f"unknown key '{parts[-1]}' {place}; the keys there are: {', '.join(sorted(section.model_fields))}"
    if kind == "missing":
        return f"'{'.'.join(parts)}' is missing; add it"
    if kind == "value_error":
        return f"[{'.'.join(parts)}] {message.removeprefix('Value error, ')}"
    if kind == "tuple_type":
        wanted = f"should be a list such as {_example(_section(settings, keys[:-1]).model_fields[keys[-1]])}"
    elif kind == "model_type":
        name, field = next(iter(_section(settings, keys).model_fields.items()))
        wanted = f"should be a table such as {{ {name} = {_example(field)} }}"
    elif kind.startswith("date_"):
        wanted = "should be a day such as 2017-01-01"
    else:
        wanted = f"{message[0].lower()}{message[1:]}"
    # dates and times as written in the file, other values as repr
    shown = value.isoformat() if isinstance(value, date | time) else repr(value)
    return f"{'.'.join(parts)} = {shown}: {wanted}"


def _section(settings: type[Section], keys: Sequence[str]) -> Any:
    section: Any = settings
    for part in keys:
        section = section.model_fields[part].annotation
    return section


def _example(field: FieldInfo) -> str:
    """Default of a field as TOML; three dots where it is empty."""
    return json.dumps(field.default or (["..."] if isinstance(field.default, tuple) else "..."))
