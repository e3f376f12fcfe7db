"""Fingerprint of a stage: SHA-256 over everything its output depends on.

A fingerprint covers the stage's name, the source that can shape its bytes (``store.sources``), the versions of the
libraries that shape them, the settings it reads, and its inputs: parents' fingerprints or file checksums. It is
computed before anything runs, so ``tripletune plan`` can list what a run would rebuild, and which ingredient changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tripletune.flatten import flatten

TOKENIZER_FILES = frozenset(
    {
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("chat_template.jinja", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    }
)
"""Files of a model's folder that are read to count tokens."""

Ingredients = dict[str, dict[str, Any]]
"""``{"source": {module: sha}, "libraries": {name: version}, "fields": {name: value}, "parents": {stage: fingerprint},
"inputs": {path: sha}}``"""


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of plain data as canonical JSON (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def input_checksums(
    named: Mapping[str, Path], read: Mapping[str, Callable[[Path], bool]] = MappingProxyType({})
) -> dict[str, str]:
    """SHA-256 of files, and of the files inside folders, under ``<purpose>/<name>``.

    Args:
        named: path by purpose.
        read: by purpose, whether a file is read, given its path below the folder; all are when it is not given.
    """
    found: dict[str, str] = {}
    for purpose, path in named.items():
        if path.is_file():
            found[f"{purpose}/{path.name}"] = sha256_file(path)
            continue
        for file in path.rglob("*"):
            below = file.relative_to(path)
            if file.is_file() and (purpose not in read or read[purpose](below)):
                found[f"{purpose}/{below.as_posix()}"] = sha256_file(file)
    return dict(sorted(found.items()))


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions, without the build: torch 2.13.0 and 2.13.0+cpu are one version, and shards from one machine
    train on another. An optional package may be missing; the stage that needs it says so as it starts.
    """
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return metadata.version(name).split("+")[0]
    except metadata.PackageNotFoundError:
        return "not installed"


def fingerprint(name: str, ingredients: Ingredients) -> str:
    """Hex SHA-256, cut to 16 bytes, over a stage's name and ingredients."""
    return sha256_json({"stage": name, **ingredients})[:32]


def differences(before: Ingredients, now: Ingredients) -> list[str]:
    """One line for each ingredient that changed, such as ``fields split.like: 4.0 -> 3.5``."""
    lines = []
    for group in now:
        old, new = flatten(before.get(group, {})), flatten(now[group])
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                lines.append(f"{group} {key}: {_short(old.get(key))} -> {_short(new.get(key))}")
    return lines


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text[:10] if len(text) in (32, 64) and all(c in "0123456789abcdef" for c in text) else text
