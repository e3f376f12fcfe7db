"""HTML pages of one file: no network, the same bytes for the same inputs, every text from data escaped by Jinja2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tripletune.store.files import write_atomically


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
