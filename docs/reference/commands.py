"""Every command of the command line: its help text and its options, from the Typer application."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

from docs.reference.docstrings import escape, table
from tripletune.cli.main import app

_BOLD = re.compile(r"\[bold\](.*?)\[/\]", re.DOTALL)


def commands() -> dict[str, Any]:
    """The commands by name, in the order of ``tripletune --help``'s groups."""
    found: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    groups = list(dict.fromkeys(_group(command) for command in found.values()))
    return dict(sorted(found.items(), key=lambda item: groups.index(_group(item[1]))))


def page() -> str:
    """The page "Commands" in Markdown."""
    parts = [
        "# Commands",
        "Generated from the command line itself; `tripletune COMMAND --help` says the same. `run` starts the Prefect "
        "flow, every other command works without Prefect. A mistake in input or settings ends in one line and exit "
        "code 2.",
        text_of(app.info.help or ""),
    ]
    group = ""
    for name, command in commands().items():
        if _group(command) != group:
            group = _group(command)
            parts.append(f"## {group}")
        parts += [f"### `tripletune {name}`", f"```text\n{_usage(name, command)}\n```", text_of(command.help or "")]
        if command.params:
            parts.append(table(("option", "default", "meaning"), list(_rows(command))))
    return "\n\n".join(parts) + "\n"


def text_of(help_text: str) -> str:
    """A help text as Markdown: bold words are commands, so they become code."""
    plain = _BOLD.sub(lambda match: "`" + " ".join(match[1].split()) + "`", inspect.cleandoc(help_text))
    return "\n\n".join(escape(" ".join(paragraph.split())) for paragraph in plain.split("\n\n"))


def _group(command: Any) -> str:
    return command.rich_help_panel if isinstance(command.rich_help_panel, str) else "Other"


def _usage(name: str, command: Any) -> str:
    words = [f"tripletune {name}"]
    for one in command.params:
        word = one.name.upper() if _is_argument(one) else f"{one.opts[0]}" + ("" if one.is_flag else f" {_value(one)}")
        words.append(word if one.required else f"[{word}]")
        if one.multiple:
            words[-1] += "..."
    return " ".join(words)


def _rows(command: Any) -> Iterator[tuple[str, str, str]]:
    for one in command.params:
        name = one.name.upper() if _is_argument(one) else one.opts[0] + ("" if one.is_flag else f" {_value(one)}")
        yield f"`{name}`", _default(one), escape(one.help or "")


def _default(one: Any) -> str:
    if one.required:
        return "required"
    if one.is_flag if not _is_argument(one) else False:
        return "off"
    return f"`{one.default}`" if one.default not in (None, "") else "none"


def _value(one: Any) -> str:
    return str(one.name).upper()


def _is_argument(one: Any) -> bool:
    return not one.opts[0].startswith("-")
