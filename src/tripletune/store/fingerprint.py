"""What a stage's output depends on, and the SHA-256 over it.

A fingerprint covers the stage's name, the source of the modules it is made of, the versions of the libraries that
shape its bytes, the config fields it reads, and its inputs: parents' fingerprints or file checksums. It is known before
anything runs, so ``tripletune plan`` can say what a run would rebuild, and which ingredient changed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tripletune
from tripletune.config import RunConfig

PACKAGE = Path(tripletune.__file__).parent

TOKENIZER_FILES = frozenset(
    {
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    }
)
"""What is read in a model's folder to count tokens."""

Ingredients = dict[str, dict[str, Any]]
"""``{"source": {module: sha}, "libraries": {name: version}, "fields": {name: value}, "parents": {stage: fingerprint},
"inputs": {path: sha}}``"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """What a stage is made of and what it reads."""

    name: str
    parents: tuple[str, ...] = ()
    source: tuple[str, ...]
    """Modules or packages below ``tripletune``, dotted: ``data.split`` or ``prompts``."""
    libraries: tuple[str, ...]
    fields: tuple[str, ...]
    """Dotted config names; a section's name stands for all of its fields."""
    outside: tuple[str, ...] = ()
    """Sections of the sources it reads itself (``movielens``, ``imdb``, ``extra_triples``)."""


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of plain data as canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def input_checksums(named: Mapping[str, Path], read: Mapping[str, Set[str]] = MappingProxyType({})) -> dict[str, str]:
    """SHA-256 of files, and of the files inside folders, by what they are for and their name below it.

    Args:
        named: path by purpose.
        read: names of the files that a stage reads in a purpose's folder; all of them when not given.
    """
    found: dict[str, str] = {}
    for purpose, path in named.items():
        base = path if path.is_dir() else path.parent
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file() and (path.is_file() or purpose not in read or file.name in read[purpose]):
                found[f"{purpose}/{file.relative_to(base).as_posix()}"] = sha256_file(file)
    return dict(sorted(found.items()))


@functools.cache
def source_hash(module: str) -> dict[str, str]:
    """SHA-256 by file of a module's or package's source.

    Python files are hashed by their syntax tree, so that comments and layout rebuild nothing; others by their bytes.
    """
    path = PACKAGE.joinpath(*module.split("."))
    files = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else sorted(path.rglob("*"))
    hashes: dict[str, str] = {}
    for file in files:
        if not file.is_file() or "__pycache__" in file.parts:
            continue
        content = file.read_bytes()
        if file.suffix == ".py":
            content = ast.dump(ast.parse(content)).encode()
        hashes[file.relative_to(PACKAGE).as_posix()] = hashlib.sha256(content).hexdigest()
    if not hashes:
        raise ValueError(f"stage source {module!r} names no file below {PACKAGE}")
    return hashes


def gather(spec: StageSpec, config: RunConfig, parents: Mapping[str, str], inputs: Mapping[str, str]) -> Ingredients:
    """Everything a stage's fingerprint is made of."""
    source: dict[str, str] = {}
    for module in spec.source:
        source |= source_hash(module)
    return {
        "source": source,
        # without the build: torch 2.13.0 and 2.13.0+cpu are one version, and shards from one machine train on another
        "libraries": {name: metadata.version(name).split("+")[0] for name in spec.libraries},
        "fields": {name: config.field(name) for name in spec.fields},
        "parents": {name: parents[name] for name in spec.parents},
        "inputs": dict(inputs),
    }


def fingerprint(name: str, ingredients: Ingredients) -> str:
    """Hex SHA-256, cut to 16 bytes, over a stage's name and ingredients."""
    return sha256_json({"stage": name, **ingredients})[:32]


def differences(before: Ingredients, now: Ingredients) -> list[str]:
    """One line for each ingredient that changed, such as ``fields split.like: 4.0 -> 3.5``."""
    lines = []
    for group in now:
        old, new = _flat(before.get(group, {})), _flat(now[group])
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                lines.append(f"{group} {key}: {_short(old.get(key))} -> {_short(new.get(key))}")
    return lines


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, inner in value.items():
        rows |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {f"{prefix}{key}": inner}
    return rows


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text[:10] if len(text) in (32, 64) and all(c in "0123456789abcdef" for c in text) else text
