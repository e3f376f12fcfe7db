"""The command ``report`` of the scripts here: the Markdown page of a JSON file that ``measure`` wrote, whole or cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def add_report(app: typer.Typer, page: Callable[[dict[str, Any]], str], default: Path) -> Callable[..., None]:
    """Add the command to a script.

    Args:
        app: of the script.
        page: the Markdown text of the file's content.
        default: file of the page, where ``--out`` names none.
    """

    @app.command()
    def report(
        results: Annotated[Path, typer.Argument(help="JSON file of measure, complete or cut.")],
        out: Annotated[Path, typer.Option(help="Markdown page.")] = default,
    ) -> None:
        """Write the page of a JSON file."""
        out.write_text(page(json.loads(results.read_text(encoding="utf-8"))), encoding="utf-8")

    return report
