"""Build the documentation site into ``build/site``: ``make docs`` runs ``python -m docs.site``.

The repository's Markdown files are copied into ``build/docs`` as they lie in the repository, so that a link that works
there works on the site too; the reference pages are generated next to them; then Zensical builds with ``--strict``,
which fails for a link to a page or an anchor that is not there.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from docs.reference import columns, commands, settings

ROOT = Path(__file__).parents[1]
SOURCE, CONFIG = ROOT / "build" / "docs", ROOT / "mkdocs.yml"
PAGES = ("*.md", "docs/*.md", "docs/guides/*.md", "configs/*.md", "benchmarks/*.md", "benchmarks/gpu/*.md")
ASSETS = "docs/assets/*"
GENERATED = {"settings": settings.page, "commands": commands.page, "columns": columns.page}
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """The Markdown files of the site that are kept in the repository."""
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


def linked_files(page: Path) -> Iterator[Path]:
    """Files of the repository that a page links to or shows, there or not; code is no link."""
    for target in _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target and not target.startswith("mailto:"):
            yield (page.parent / target).resolve()


def prepare(target: Path = SOURCE) -> None:
    """Fill a folder with every page of the site and the files they link to."""
    shutil.rmtree(target, ignore_errors=True)
    wanted = {*ROOT.glob(ASSETS), *(path for page in pages() for path in (page, *linked_files(page)) if path.is_file())}
    for path in wanted:
        copy = target / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for name, page_of in GENERATED.items():
        reference = target / "docs" / "reference" / f"{name}.md"
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(page_of(), encoding="utf-8")


def main() -> int:
    """Prepare the pages and build the site; returns Zensical's exit code."""
    prepare()
    build = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(CONFIG)]
    return subprocess.run(build, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
