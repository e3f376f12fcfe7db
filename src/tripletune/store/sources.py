"""Source that can shape a stage's output, found by following imports from the stage's function.

A fingerprint has to change when code changes that can change a byte, and must not when it cannot. So the modules of a
stage are computed, not listed: the function that runs it, the local functions and constants that function uses, and
every module of the package that can be reached from there by imports. Imports for the type checker are not followed,
and modules of ``SHAPES_NO_BYTE`` are not entered. A module is hashed by what it compiles to without docstrings and
line numbers, so that comments, layout and prose rebuild nothing.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import tripletune

PACKAGE = Path(tripletune.__file__).parent

SHAPES_NO_BYTE = (
    "",  # the version: a release that changes no code rebuilds nothing
    "config",  # counts by the values of the settings that are read
    "errors",  # messages for the user
    "models.registry",  # the models that the config selects are added by name
    "noise",  # which lines of libraries are shown
    "pipeline",  # which stage runs when; a stage's own function counts by itself
    "progress",  # log lines
    "processes",  # how a subprocess is watched, not what it computes
    "rank.workers",  # which process answers which piece; a piece is answered by rank.pieces
    "store.fingerprint",
    "store.objects",  # where bytes come from; their checksums count
    "store.paths",  # where outputs lie, and that they appear whole
    "store.retries",  # how often a network is asked again
    "store.runs",
    "store.shared",
    "store.meter",
    "store.sources",
    "tracking",  # what is logged
)
"""Modules and packages below ``tripletune`` that a closure does not enter, each with the reason."""


@dataclass(frozen=True, slots=True)
class Closure:
    """Modules below ``tripletune`` that can shape an output, and the names that their code mentions."""

    hashes: dict[str, str]
    """SHA-256 by module, such as ``retrieve.fuse``."""
    names: frozenset[str]
    """Attributes, keywords and strings in the code: what is not among them is not read."""


def close_over(roots: Iterable[str], *, without: Collection[str] = ()) -> Closure:
    """Follow imports from some roots.

    Args:
        roots: modules below ``tripletune``, dotted, or ``module:function`` for one function of a module with the local
            functions and constants that it uses.
        without: further modules or packages that are not entered: code that this config does not run.

    Raises:
        ValueError: a root does not exist.
    """
    cut = (*SHAPES_NO_BYTE, *without)
    hashes: dict[str, str] = {}
    names: set[str] = set()
    waiting = list(roots)
    with _no_garbage_collection():
        while waiting:
            root = waiting.pop()
            if root in hashes or (":" not in root and _is_cut(root, cut)):
                continue
            read = _read_function(*root.split(":")) if ":" in root else _read_module(root)
            hashes[root] = read.sha256
            names |= read.names
            waiting += read.imports
    return Closure(dict(sorted(hashes.items())), frozenset(names))


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Syntax trees have no cycles, and many nodes: looking for garbage would take as long as parsing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True, slots=True)
class _Read:
    """What one module, or one function of it, contributes."""

    sha256: str
    imports: tuple[str, ...]
    names: frozenset[str]


def _is_cut(module: str, cut: Collection[str]) -> bool:
    return any(module == name or (name and module.startswith(f"{name}.")) for name in cut)


def _file(module: str) -> Path | None:
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _parse(content: bytes) -> ast.Module:
    """The syntax tree of a file, without what only the type checker or a reader sees."""
    tree = ast.parse(content)
    for node in (tree, *_statements(tree)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            kept = [one for one in node.body if not (_is_prose(one) or _is_for_type_checker(one))]
            node.body = kept or [ast.copy_location(ast.Pass(), one) for one in node.body[:1]]
    return tree


def _is_prose(node: ast.stmt) -> bool:
    """A docstring, or another string that stands alone; one that is data is assigned or passed on."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _content(module: str) -> bytes:
    file = _file(module)
    if file is None:
        raise ValueError(f"stage source {module!r} names no file below {PACKAGE}")
    return file.read_bytes()


def _read_module(module: str) -> _Read:
    # importing a module runs the packages it lies in
    packages = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
    return _read(_read_content(_content(module)), packages)


@dataclass(frozen=True, slots=True)
class _Source:
    """What syntax alone says of a module or function."""

    sha256: str
    names: frozenset[str]
    imports: tuple[str, ...]
    """Dotted, below the package: modules, and names in modules."""


def _read(source: _Source, packages: Iterable[str] = ()) -> _Read:
    """Which of the imports are modules depends on the files there are."""
    modules = [name if _file(name) else name.rpartition(".")[0] for name in source.imports]
    return _Read(source.sha256, tuple(dict.fromkeys([*packages, *modules])), source.names)


@functools.cache
def _read_content(content: bytes) -> _Source:
    return _read_tree(_parse(content))


def _read_tree(tree: ast.Module) -> _Source:
    names: set[str] = set()
    described = _describe(compile(tree, "", "exec", dont_inherit=True, optimize=2), names)
    return _Source(hashlib.sha256(repr(described).encode()).hexdigest(), frozenset(names), _imports(tree))


def _read_function(module: str, function: str) -> _Read:
    """A function, what it uses of its own module, and the imports that serve these."""
    tree = _parse(_content(module))
    local: dict[str, ast.stmt] = {name: node for node in tree.body for name in _defined(node)}
    imported: dict[str, ast.stmt] = {
        alias.asname or alias.name.split(".")[0]: _only(node, alias)
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    if function not in local:
        raise ValueError(f"stage source {module}:{function} does not exist")
    used: dict[str, ast.stmt] = {}
    waiting = [function]
    while waiting:
        name = waiting.pop()
        if name not in used:
            used[name] = local[name] if name in local else imported[name]
            mentioned = {node.id for node in ast.walk(used[name]) if isinstance(node, ast.Name)}
            waiting += sorted(mentioned & (local.keys() | imported.keys()))
    nodes = list({id(node): node for _, node in sorted(used.items())}.values())
    return _read(_read_tree(ast.Module(body=[*_future(tree), *nodes], type_ignores=[])))


def _is_for_type_checker(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _only(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> ast.stmt:
    """An import statement of one of its names."""
    one: ast.stmt = ast.Import(names=[alias])
    if isinstance(node, ast.ImportFrom):
        one = ast.ImportFrom(module=node.module, names=[alias], level=node.level)
    return ast.copy_location(one, node)


def _future(tree: ast.Module) -> list[ast.stmt]:
    """``from __future__`` lines, which change how the rest compiles."""
    return [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _imports(tree: ast.Module) -> tuple[str, ...]:
    """What a tree imports of this package, dotted and below it: modules, and names in modules."""
    found: list[str] = []
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(name.partition(".")[2] for name in found if name.partition(".")[0] == "tripletune")


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """All statements, inner ones too."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        outer = waiting.pop()
        for part in _HOLDERS.intersection(outer._fields):
            inner = getattr(outer, part)
            if isinstance(inner, list):  # of a lambda or a conditional it is an expression
                yield from (node for node in inner if isinstance(node, ast.stmt))
                waiting += inner


_HOLDERS = frozenset({"body", "orelse", "handlers", "finalbody", "cases"})
"""Fields of a syntax node that hold statements."""


def _describe(code: CodeType, names: set[str]) -> tuple[object, ...]:
    """A code object without file and line numbers; ``names`` receives the names and strings in it."""
    names.update(code.co_names)
    constants = tuple(_constant(value, names) for value in code.co_consts)
    return (
        code.co_name,
        code.co_code,
        code.co_exceptiontable,
        code.co_flags,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars),
        constants,
    )


def _constant(value: object, names: set[str]) -> object:
    if isinstance(value, CodeType):
        return _describe(value, names)
    if isinstance(value, str):
        names.add(value)
    elif isinstance(value, tuple):
        return tuple(_constant(inner, names) for inner in value)
    elif isinstance(value, frozenset):  # in an order of its own in every process
        return "frozenset", sorted(repr(_constant(inner, names)) for inner in value)
    return type(value).__name__, repr(value)
