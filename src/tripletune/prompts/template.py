"""Prompt templates: plain text with slots, shipped in ``templates/``, known by an id and the SHA-256 of their bytes.

A file has front matter with its id, a ``[system]`` part and a ``[user]`` part. In the user part each of the six slots
stands once, alone on its line, and is replaced by lines of data; braces that hold no slot's name are refused, so that
a misspelt slot cannot reach a model as text.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from tripletune.errors import ConfigError

FOLDER = Path(__file__).parent / "templates"
SLOTS = ("liked", "disliked", "ranking", "similar", "triples", "candidates")

_LAYOUT = re.compile(r"---\nid: (?P<id>[^\n]+)\n---\n\[system\]\n(?P<system>.*)\n\[user\]\n(?P<user>.*)", re.DOTALL)
_SLOT = re.compile(r"\{([^{}\n]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A prompt's fixed text. ``user`` = ``texts[0] + slots[0] + texts[1] + ... + texts[-1]``."""

    id: str
    sha256: str
    system: str
    texts: tuple[str, ...]
    slots: tuple[str, ...]

    @property
    def user(self) -> str:
        """The user part as it stands in the file, with its slots."""
        slots = (*(f"{{{slot}}}" for slot in self.slots), "")
        return "".join(text + slot for text, slot in zip(self.texts, slots, strict=True))


def shipped() -> list[str]:
    """Names of the templates that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def load_template(name: str) -> Template:
    """Read a shipped template.

    Raises:
        ConfigError: there is none of that name, or its file is not a valid template.
    """
    path = FOLDER / f"{name}.txt"
    if name not in shipped():
        raise ConfigError(f"prompt.template = {name!r} is not there; the shipped templates are: {', '.join(shipped())}")
    template = parse_template(path.read_bytes(), where=path.name)
    if template.id != name:
        raise ConfigError(f"template {path.name} says id: {template.id}; the id must be the file's name, {name}")
    return template


def parse_template(content: bytes, where: str) -> Template:
    """Read a template's bytes; ``where`` names it in errors.

    Raises:
        ConfigError: the layout is wrong, or a slot is unknown, missing, repeated or not alone on its line.
    """
    hint = f"; compare with a shipped template: {', '.join(shipped())}"
    try:
        match = _LAYOUT.fullmatch(content.decode("utf-8"))
    except UnicodeDecodeError:
        match = None
    if match is None:
        raise ConfigError(
            f"template {where} must be UTF-8 text: '---', 'id: NAME' and '---', then [system], then [user]{hint}"
        )
    system, user = match["system"].strip("\n"), match["user"].strip("\n")
    parts = _SLOT.split(user)
    texts, slots = tuple(parts[::2]), tuple(parts[1::2])
    _check_slots(texts, slots, system, where, hint)
    return Template(
        id=match["id"].strip(), sha256=hashlib.sha256(content).hexdigest(), system=system, texts=texts, slots=slots
    )


def _check_slots(texts: tuple[str, ...], slots: tuple[str, ...], system: str, where: str, hint: str) -> None:
    known = ", ".join(f"{{{slot}}}" for slot in SLOTS)
    for slot in slots:
        if slot not in SLOTS:
            raise ConfigError(f"template {where} has the unknown slot {{{slot}}}; the slots are {known}{hint}")
        if slots.count(slot) > 1:
            raise ConfigError(
                f"template {where} has the slot {{{slot}}} {slots.count(slot)} times; write it once{hint}"
            )
    for slot in SLOTS:
        if slot not in slots:
            raise ConfigError(f"template {where} has no slot {{{slot}}}; all of {known} are needed{hint}")
    for number, slot in enumerate(slots):
        before, after = texts[number], texts[number + 1]
        if (before and not before.endswith("\n")) or (after and not after.startswith("\n")):
            raise ConfigError(f"template {where}: the slot {{{slot}}} must stand alone on its line{hint}")
    if "{" in system + "".join(texts) or "}" in system + "".join(texts):
        raise ConfigError(f"template {where} has braces outside the user part's slots {known}; remove them{hint}")
