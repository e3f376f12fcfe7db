"""The documentation: nothing undocumented in the reference, no dead link or file name, pictures up to date."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from pathlib import Path

import polars as pl
import pytest
import yaml

from docs import picture, site
from docs.reference import columns, commands, settings
from docs.reference.docstrings import attribute_docstrings, split_columns, to_markdown
from tripletune import schemas
from tripletune.config import RunConfig
from tripletune.pipeline.registry import STAGES

ROOT = Path(__file__).parents[2]
PAGES = [page.relative_to(ROOT).as_posix() for page in site.pages()]
FILE_NAME = re.compile(r"`([\w./{},-]+\.(?:py|toml|yaml|md))`")
"""A file named in code; names with a placeholder do not match."""


def all_schemas():
    modules = [
        importlib.import_module(f"tripletune.schemas.{one.name}") for one in pkgutil.iter_modules(schemas.__path__)
    ]
    return {name: value for one in modules for name, value in vars(one).items() if isinstance(value, pl.Schema)}


def named_paths(text):
    """File names in code, with braces expanded as a shell would."""
    for name in FILE_NAME.findall(text):
        parts = [re.split(",", part) for part in re.split(r"[{}]", name)]
        odd = [part if index % 2 else [",".join(part)] for index, part in enumerate(parts)]
        yield from ("".join(chosen) for chosen in itertools.product(*odd))


def test_the_reference_has_every_setting_with_its_meaning():
    found = {one.dotted: one for one in settings.settings()}
    tables = {"models", "retrieve.fused_more", "finetune.trainer"}  # flat() has a row for each of their keys, if any
    flat = {name for name in RunConfig(dataset="x").flat() if name.rpartition(".")[0] not in tables}
    assert set(found) == flat | tables
    assert [name for name, one in found.items() if not one.meaning] == []
    page = settings.page().replace("\\|", "|")
    assert [
        one.dotted
        for one in found.values()
        if f"| `{one.name}` | {one.type} | {one.default} |" not in page.replace("\\|", "|")
    ] == []


def test_a_setting_is_shown_with_type_limits_and_default():
    found = {one.dotted: one for one in settings.settings()}
    assert found["split.unseen_share"].type == "number ≥ 0, ≤ 0.5"
    assert (
        found["retrieve.retriever"].type
        == 'one of `"lightgcn"`, `"ease"`, `"slist"`, `"sasrec"`, `"sequence"`, `"text"`, `"fused"`'
    )
    assert found["promote.registered_model"].type.startswith('text or `""`')
    assert found["evaluate.rerank_cutoffs"].type == "list of integer each ≥ 1, each ≤ 100"
    assert found["dataset"].default == "required"
    assert found["split.valid_from"].default == "none"
    assert found["ingest.earliest"].default == "`1995-01-01`"
    assert found["finetune.gradient_checkpointing"].default == "`false`"
    assert found["source.feed.ratings"].default == "`[]`"
    assert found["retrieve.fused_more"].type == "table of number each ≥ 0, each ≤ 1000"
    assert found["models"].type == "table of table of any value"
    assert found["models"].default == "`{}`"


def test_the_reference_has_every_command_with_its_options():
    found = commands.commands()
    assert {"run", "plan", "show", "audit", "recommend", *(stage.name for stage in STAGES)} <= set(found)
    assert [name for name, command in found.items() if not command.help] == []
    page = commands.page()
    for name, command in found.items():
        section = page.split(f"### `tripletune {name}`\n", 1)[1].split("\n##", 1)[0]
        for option in command.params:
            assert option.help, (name, option.name)
            shown = option.opts[0] if option.opts[0].startswith("-") else option.name.upper()
            assert f"| `{shown}" in section, (name, option.name)


def test_the_reference_has_every_column_with_its_meaning():
    found = {file.name: file for file in columns.files()}
    assert {name: found[name].schema for name in found} == all_schemas()
    assert [(file.name, name) for file in found.values() for name, said in file.meanings.items() if not said] == []
    page = columns.page()
    for file in found.values():
        section = page.split(f"### {file.name}\n", 1)[1].split("\n##", 1)[0]
        assert [name for name in file.schema if f"| `{name}` |" not in section] == []


def test_no_docstring_gives_meaning_to_a_column_that_is_gone():
    files = list(columns.files())
    assert [(file.name, name) for file in files for name in file.own if name not in file.schema] == []
    everywhere = {name for file in files for name in file.schema}
    assert set(split_columns(schemas.__doc__)[1]) <= everywhere


def test_docstrings_are_read_from_the_source():
    body = '    """Of the class."""\n    a: int = 1\n    """Of a."""\n    b: int = 2\n    c = 3\n    """Of\n    c."""\n'
    source = f"class C:\n{body}"
    assert attribute_docstrings(source) == {"a": "Of a.", "c": "Of\nc."}
    assert attribute_docstrings('A = 1\n"""Of A."""\nB = 2\n') == {"A": "Of A."}
    about, meanings = split_columns("A file.\n\nColumns:\n    a: one\n        and more: yes\n    b: two\n")
    assert about == "A file."
    assert meanings == {"a": "one and more: yes", "b": "two"}
    assert to_markdown("``<a>`` is <b>\nand *c*") == "`<a>` is \\<b> and \\*c\\*"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file(page):
    assert [path for path in site.linked_files(ROOT / page) if not path.exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("CHANGELOG.md",)])
def test_every_source_file_that_a_page_names_is_there(page):
    roots = (ROOT, ROOT / "src" / "tripletune", (ROOT / page).parent)
    names = [name for name in named_paths((ROOT / page).read_text(encoding="utf-8")) if "/" in name]
    assert [name for name in names if not any((root / name).is_file() for root in roots)] == []


def test_the_navigation_has_every_page_once_and_no_other():
    def leaves(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for inner in entry.values() if isinstance(entry, dict) else entry:
                yield from leaves(inner)

    listed = list(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    generated = [f"docs/reference/{name}.md" for name in site.GENERATED]
    assert sorted(listed) == sorted([*PAGES, *generated])


def test_the_site_is_prepared_with_pages_pictures_and_linked_files(tmp_path):
    site.prepare(tmp_path / "docs")
    made = {path.relative_to(tmp_path / "docs").as_posix() for path in (tmp_path / "docs").rglob("*") if path.is_file()}
    assert {"README.md", "docs/pipeline.svg", "docs/report.png", "prefect.yaml", "docs/reference/settings.md"} <= made
    assert set(PAGES) <= made


def test_no_page_loads_anything_from_elsewhere():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert all("://" not in str(path) for path in [*config["extra_css"], *config["extra"]["polyfills"]])
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "```mermaid" not in text, page  # drawn by a script that the site would fetch
        assert not re.search(r"!\[[^]]*\]\(https?:", text), page


def test_the_picture_of_the_stages_is_up_to_date():
    drawn = picture.draw(picture.reduce(picture.stage_parents()))
    assert picture.PICTURE.read_text(encoding="utf-8") == drawn, "draw it again: python -m docs.picture"


def test_a_parent_that_another_parent_reads_gets_no_arrow():
    assert picture.reduce({"a": (), "b": ("a",), "c": ("a", "b")}) == {"a": (), "b": ("a",), "c": ("b",)}


def test_a_stage_that_no_other_reads_is_drawn_too():
    drawn = picture.draw({"a": (), "b": ("a",), "generate": ("b",), "lonely": ("a",), "last": ("generate",)})
    assert [name for name in ("a", "b", "generate", "lonely", "last") if f">{name}</text>" not in drawn] == []


def test_the_readme_is_short_and_in_order():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    titles = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert titles == [
        *("Install and hardware", "The two commands", "What you see", "Results", "Real data"),
        *("Llama 3.1 8B on GPUs", "Nightly runs", "Extend", "Cite"),
    ]


def test_every_preset_has_a_page_of_its_own():
    presets = {path.stem for path in (ROOT / "configs").glob("*.toml")}
    assert {path.stem for path in (ROOT / "configs").glob("*.md")} == presets | {"README"}
