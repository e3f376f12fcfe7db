"""Every column of every Parquet file that stages hand on: dtype and meaning, from the schemas."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import polars as pl

from docs.reference.docstrings import attribute_docstrings, split_columns, table, to_markdown
from tripletune import schemas
from tripletune.pipeline.registry import BY_NAME


@dataclass(frozen=True, slots=True)
class File:
    """A schema with what its docstring says."""

    name: str
    schema: pl.Schema
    about: str
    own: dict[str, str]
    """Meanings that the schema's docstring gives."""

    @property
    def stage(self) -> str:
        """Stage that writes it, by the path in its docstring; empty where no stage does."""
        found = re.match(r"([a-z]+)[|/]", self.about)
        return found[1] if found else ""

    @property
    def meanings(self) -> dict[str, str]:
        """Meaning of each column: the schema's own, else the one that holds for every file; empty where both lack."""
        shared = split_columns(inspect.getdoc(schemas) or "")[1]
        return {column: self.own.get(column, shared.get(column, "")) for column in self.schema}


def files() -> Iterator[File]:
    """Every schema in ``tripletune.schemas`` and the modules below it, in the order of the source."""
    seen: set[str] = set()
    for module in _modules():
        docstrings = attribute_docstrings(inspect.getsource(module))
        for name, value in vars(module).items():
            if isinstance(value, pl.Schema) and name in docstrings and name not in seen:
                seen.add(name)
                about, own = split_columns(docstrings[name])
                yield File(name, value, about, own or getattr(module, f"{name.removesuffix('S')}_COLUMNS", {}))


def page() -> str:
    """The page "Columns" in Markdown."""
    parts = [
        "# Columns",
        "Generated from `tripletune.schemas`. A stage reads a file through its schema, so a file with other columns "
        "or dtypes is refused by name. Paths are below `artifacts/<dataset>/`, with the stage's fingerprint after its "
        "name.",
    ]
    order = list(BY_NAME)
    stage = None
    for file in sorted(files(), key=lambda file: order.index(file.stage) if file.stage else len(order)):
        if file.stage != stage:
            stage = file.stage
            parts.append(f"## {stage or 'Other files'}")
        rows = [
            (f"`{name}`", f"`{_dtype(file.schema[name])}`", to_markdown(file.meanings[name])) for name in file.schema
        ]
        parts += [f"### {file.name}", to_markdown(file.about), table(("column", "dtype", "meaning"), rows)]
    return "\n\n".join(parts) + "\n"


def _modules() -> list[ModuleType]:
    below = pkgutil.iter_modules(getattr(schemas, "__path__", []))
    return [schemas, *(importlib.import_module(f"tripletune.schemas.{one.name}") for one in below)]


def _dtype(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.Enum):
        return f"Enum({', '.join(dtype.categories)})"
    if isinstance(dtype, pl.List):
        return f"List({_dtype(dtype.inner)})"  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return f"Struct({', '.join(f'{field.name}: {_dtype(field.dtype)}' for field in dtype.fields)})"  # type: ignore[arg-type]
    return str(dtype)
