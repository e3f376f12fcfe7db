"""Read attribute docstrings (a bare string after an assignment) and turn docstrings into Markdown."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Sequence
from typing import Any

_COLUMNS = re.compile(r"^Columns:\n((?:[ ]{4}.*\n?)+)", re.MULTILINE)


def attribute_docstrings(source: str) -> dict[str, str]:
    """Docstring of each assigned name in a module's or a class's source; names without one are absent."""
    body = ast.parse(textwrap.dedent(source)).body
    if len(body) == 1 and isinstance(body[0], ast.ClassDef):
        body = body[0].body
    found: dict[str, str] = {}
    for node, following in itertools.pairwise(body):
        if not (isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and isinstance(following.value.value, str):
            found[target.id] = inspect.cleandoc(following.value.value)
    return found


def split_columns(docstring: str) -> tuple[str, dict[str, str]]:
    """A docstring without its list ``Columns:``, and that list: meaning by column."""
    match = _COLUMNS.search(docstring)
    if match is None:
        return docstring.strip(), {}
    meanings: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(match[1]).strip()):
        name, _, meaning = " ".join(entry.split()).partition(": ")
        meanings[name] = meaning
    return (docstring[: match.start()] + docstring[match.end() :]).strip(), meanings


def to_markdown(docstring: str) -> str:
    """A docstring's paragraphs as Markdown: double backticks become single ones, line breaks are joined."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(escape(" ".join(paragraph.split())).replace("``", "`") for paragraph in paragraphs)


def escape(text: str) -> str:
    """Text whose ``<words in angles>`` and underscores between words stay as they are; code spans are left alone."""
    pieces = re.split(r"(``?[^`]+``?)", text)
    return "".join(piece if index % 2 else re.sub(r"([<*\[\]])", r"\\\1", piece) for index, piece in enumerate(pieces))


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; a cell's bars are escaped and its line breaks are joined."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")
