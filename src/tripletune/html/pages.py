"""HTML pages of one file: no network, the same bytes for the same inputs, every text from data escaped by Jinja2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tripletune.store.files import make_folder, write_atomically, write_json


def render_page(template: str, **values: Any) -> str:
    """A page, or a part of one.

    Args:
        template: below ``tripletune/html``; pages share ``templates/style.html.j2`` and ``templates/macros.html.j2``.
        values: every variable that the template names.
    """
    environment = Environment(
        loader=PackageLoader("tripletune.html", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page; arguments as in ``render_page``."""
    html = render_page(template, **values)
    write_atomically(path, lambda part: part.write_text(html, encoding="utf-8"))


def write_result(
    folder: Path,
    option: str,
    files: Sequence[str],
    *,
    plain: Any,
    markdown: Sequence[str],
    template: str,
    **values: Any,
) -> list[Path]:
    """Write a result as JSON, Markdown and HTML, three files that say the same.

    Args:
        folder: is made where it is missing.
        option: of the command line, with which the user names another folder.
        files: names of the three, in this order.
        plain: data that JSON can hold.
        markdown: lines of the Markdown file.
        template, values: of the page, as in ``render_page``.

    Raises:
        InputError: the folder cannot be made.
    """
    make_folder(folder, option)
    as_json, as_markdown, as_html = paths = [folder / name for name in files]
    write_json(as_json, plain)
    text = "\n".join(markdown) + "\n"
    write_atomically(as_markdown, lambda part: part.write_text(text, encoding="utf-8"))
    write_page(as_html, template, **values)
    return paths
