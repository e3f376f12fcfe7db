"""Mutation testing: plant small faults in the core, one at a time, and count those that the tests notice.

    python tests/mutants.py                       # every module, 20 mutants each: ``make mutants``
    python tests/mutants.py --module fuse --sample 100

cosmic-ray lists the mutants of a module (an operator, a constant, a condition) and writes each into a copy of the
tree; the working tree is never changed. A seeded sample of them is tried, each by the module's own test files in a
forked child of this process, which has imported the libraries already. Survivors are written out as diffs: each is a
test to write, or a change that changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import gc
import importlib
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("src", "tests", "flows", "tasks", "configs", "docs", "benchmarks", "pyproject.toml", "README.md", "Makefile")
PACKAGE = "src/tripletune"

TESTS: dict[str, tuple[str, ...]] = {
    "evaluate/metrics.py": ("numerics/test_metrics.py",),
    "evaluate/significance.py": ("numerics/test_significance.py", "numerics/test_paired.py"),
    "evaluate/answers/positions.py": ("numerics/test_answer_measures.py", "unit/test_answer_audits.py"),
    "evaluate/answers/groups.py": ("numerics/test_answer_measures.py", "unit/test_answer_audits.py"),
    "retrieve/fuse.py": ("unit/test_fuse.py",),
    "models/serving/topk.py": ("unit/test_topk.py",),
    "retrieve/sampling.py": ("unit/test_sampling.py",),
    "data/split/rules.py": ("unit/test_split_protocols.py", "unit/test_split.py"),
    "rank/decoding.py": ("unit/test_decoding.py",),
    "ndcg.py": ("numerics/test_metrics.py",),
    "residual.py": ("unit/test_residual.py",),
    "finetune/label_loss.py": ("unit/test_label_loss.py",),
    "prompts/budget.py": ("unit/test_budget_by_hand.py", "unit/test_budget.py"),
    "models/lightgcn/loss.py": ("numerics/test_film_sample.py", "numerics/test_lightgcn.py"),
    "contract.py": ("unit/test_contract.py",),
    "promote/decision.py": ("unit/test_promotion_bounds.py", "unit/test_promotion.py"),
    "quality/drift.py": ("unit/test_quality_drift.py",),
    "models/training/loop.py": ("unit/test_fit_files.py", "unit/test_training.py"),
    "finetune/checkpoints.py": ("unit/test_launch.py",),
    "finetune/best.py": ("unit/test_best.py",),
    "finetune/label_ndcg.py": ("unit/test_best.py",),
    "finetune/ranks.py": ("unit/test_ranks.py",),
    "finetune/token_files.py": ("unit/test_token_files.py",),
    "finetune/training.py": ("unit/test_diverged.py", "unit/test_trainer_settings.py", "flows/test_trainer.py"),
}
"""Module of the package, and the test files that are to notice a fault in it, the quickest first."""

WARM = ("numpy", "polars", "torch", "scipy.stats", "safetensors.torch", "transformers", "datasets", "peft", "trl",
        "tokenizers", "accelerate", "dgl", "pydantic", "hypothesis", "pyarrow.parquet")  # fmt: skip
"""Libraries imported once, before the children are forked; nothing of the package itself."""

LEAST_SECONDS, PATIENCE = 60, 4
"""A child is ended after ``PATIENCE`` times what the tests take without a fault, and never before ``LEAST_SECONDS``."""
MEMORY = 12 << 30
"""Bytes a child may take: a mutated size can ask for more than the machine has."""

Outcome = Literal["survived", "killed", "timeout"]


@dataclass(frozen=True)
class Mutant:
    """One change of one place."""

    operator: str
    occurrence: int
    start: tuple[int, int]
    """Line, from 1, and column, from 0."""


SIZES = re.compile(r"(^|_)(BLOCK|AT_ONCE|ROW_GROUP)(_|$)")
"""Names of constants that say how much is computed or written at a time: no result depends on them, which tests of
their modules show by changing them."""


def untried(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a change can change no result.

    Annotations and protocols, which nothing evaluates; ``dataclass(frozen, slots)`` and ``zip(strict)``, which only
    guard against mistakes of a caller; and constants named as in ``SIZES``.
    """
    found: list[ast.expr | ast.stmt | None] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
        elif isinstance(node, ast.ClassDef):
            found += (
                flag.value for call in node.decorator_list if isinstance(call, ast.Call) for flag in call.keywords
            )
            if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
                found.append(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            found += (flag.value for flag in node.keywords if flag.arg == "strict")
        elif isinstance(node, ast.Assign) and any(
            isinstance(name, ast.Name) and SIZES.search(name.id) for name in node.targets
        ):
            found.append(node)
    return [((e.lineno, e.col_offset), (e.end_lineno or 0, e.end_col_offset or 0)) for e in found if e is not None]


def list_mutants(path: Path) -> list[Mutant]:
    """Every mutant that cosmic-ray knows of a module, but those in ``untried`` places."""
    from cosmic_ray.commands.init import init
    from cosmic_ray.work_db import WorkDB, use_db

    with tempfile.TemporaryDirectory() as folder, use_db(f"{folder}/session.sqlite", WorkDB.Mode.create) as session:
        init([path], session, {})
        specs = [spec for item in session.work_items for spec in item.mutations]
    ignored = untried(path.read_text(encoding="utf-8"))
    mutants = [Mutant(spec.operator_name, spec.occurrence, tuple(spec.start_pos)) for spec in specs]
    mutants = [one for one in mutants if not any(first <= one.start < last for first, last in ignored)]
    return sorted(mutants, key=lambda one: (one.start, one.operator, one.occurrence))


def draw(mutants: Sequence[Mutant], seed: str) -> list[Mutant]:
    """All mutants in a seeded order that spreads over the module: a second one of a place only after one of each.

    A place with a binary operator has eleven mutants and one with a condition has one, so mutants drawn all alike
    would be mostly arithmetic.
    """
    rng = random.Random(seed)
    by_place: dict[tuple[int, int], list[Mutant]] = defaultdict(list)
    for one in mutants:
        by_place[one.start].append(one)
    places = list(by_place.values())
    rng.shuffle(places)
    for place in places:
        rng.shuffle(place)
    rounds = max((len(place) for place in places), default=0)
    return [place[turn] for turn in range(rounds) for place in places if turn < len(place)]


def run_tests(tree: Path, files: Sequence[str], log: Path, seconds: float) -> Outcome:
    """Run test files of the copied tree in a forked child."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(tree)
            import pytest

            options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
            code = pytest.main([*options, *(f"tests/{file}" for file in files)])
        finally:
            os._exit(int(code))
    deadline, ended, status = time.monotonic() + seconds, 0, 0
    try:
        while not ended and time.monotonic() < deadline:
            time.sleep(0.05)
            ended, status = os.waitpid(child, os.WNOHANG)
    finally:  # also where this process is interrupted, and for what the tests may have left behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not ended:
            os.waitpid(child, 0)
    if not ended:
        return "timeout"
    return "survived" if status == 0 else "killed"


def try_module(tree: Path, module: str, number: int, seed: int) -> tuple[dict[Outcome, int], int, list[str]]:
    """Try a sample of a module's mutants: how many came to what, how many there are, and the survivors' diffs.

    Raises:
        RuntimeError: the tests fail without a fault.
    """
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    path, files, log = tree / PACKAGE / module, TESTS[module], tree / "pytest.log"
    started = time.monotonic()
    if run_tests(tree, files, log, 1800) != "survived":
        raise RuntimeError(f"{module}: its tests fail as it is:\n{log.read_text(errors='replace')[-3000:]}")
    seconds = max(LEAST_SECONDS, PATIENCE * (time.monotonic() - started))
    mutants = list_mutants(path)
    counts: dict[Outcome, int] = {"survived": 0, "killed": 0, "timeout": 0}
    survivors = []
    for one in draw(mutants, f"{seed}:{module}"):
        if sum(counts.values()) == number:
            break
        with use_mutation(path, get_operator(one.operator)(), one.occurrence) as (before, after):
            if not _compiles(after):
                continue
            started = time.monotonic()
            outcome = run_tests(tree, files, log, seconds)
        counts[outcome] += 1
        change = "".join(_diff(before, after, module))
        if outcome == "survived":
            survivors.append(change)
        print(f"{module}:{one.start[0]} {one.operator} {outcome} {time.monotonic() - started:.1f}s", file=sys.stderr)
    return counts, len(mutants), survivors


def _compiles(source: str) -> bool:
    """Whether it is Python: every test fails where it is not, and that shows nothing."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def _diff(before: str, after: str, module: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), module, module, n=0)
    return list(lines)[2:]


def copy_tree(to: Path) -> None:
    """Copy what the tests need, without compiled files: a mutant may have the size and second of its original."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).is_file():
            shutil.copy2(ROOT / name, to / name)


def prepare(tree: Path) -> None:
    """Let this process, its children and theirs import the package from the copy, on one thread each."""
    os.environ |= {
        "PYTHONPATH": f"{tree / 'src'}{os.pathsep}{tree}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tree / "hf_modules"),  # a mutant may run the code that comes with a model
        "TOKENIZERS_PARALLELISM": "false",
    }
    sys.dont_write_bytecode = True
    sys.path[:] = [str(tree / "src"), str(tree), *(entry for entry in sys.path if Path(entry) != ROOT / "tests")]
    for name in WARM:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page of the libraries
    assert not any(name.split(".")[0] in ("tripletune", "tests") for name in sys.modules)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", action="append", help="only modules whose path holds this; may be repeated")
    parser.add_argument("--sample", type=int, default=20, help="mutants tried of each module (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--least", type=float, default=0.9, help="share that must be killed (default: 0.9)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants.md", help="table and survivors")
    given: Any = parser.parse_args(arguments)
    chosen = [module for module in TESTS if not given.module or any(part in module for part in given.module)]
    if not chosen:
        parser.error(f"--module {given.module}: no such module; there are {', '.join(TESTS)}")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder).resolve()
        copy_tree(tree)
        prepare(tree)
        rows, survivors, total = [], [], defaultdict(int)
        for module in chosen:
            counts, all_mutants, alive = try_module(tree, module, given.sample, given.seed)
            tried = sum(counts.values())
            total["tried"] += tried
            total["survived"] += counts["survived"]
            rows.append(f"| {module} | {all_mutants} | {tried} | {tried - len(alive)} | {len(alive)} |")
            survivors += [f"{module}\n\n```diff\n{change}```\n" for change in alive]
            _write(given.out, rows, survivors)
    killed = 1 - total["survived"] / total["tried"]
    print(f"{killed:.1%} of {total['tried']} mutants were killed; see {given.out}")
    return 0 if killed >= given.least else 1


def _write(out: Path, rows: Sequence[str], survivors: Sequence[str]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    table = "\n".join(["| module | mutants | tried | killed | survived |", "|---|--:|--:|--:|--:|", *rows])
    out.write_text("\n".join([table, "", *survivors]), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
