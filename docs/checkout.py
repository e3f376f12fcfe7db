"""Run the guides' examples in a copy of the checkout with the example's files and edits.

``docs/examples/<name>/`` holds new files under the paths that they have in a checkout, and ``edits.diff``, which is
applied to existing files. The checkout itself is never changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
EDITS = "edits.diff"

TINY = """
dataset = "tiny"
seed = 7
[synthetic]
viewers = 120
movies = 100
[rgat]
max_steps = 10
[lightgcn]
max_steps = 10
[sequence]
dim = 16
max_steps = 10
"""
"""A synthetic release on which the stages up to generate take seconds."""
UP_TO_GENERATE = ("ingest", "split", "knowledge", "rgat", "lightgcn", "ease", "retrieve", "generate")
"""Stages up to generate for candidates of EASE or LightGCN (no sequence model)."""
_STAGES = """
import sys
from tripletune.cli.main import main

for stage in sys.argv[1:]:
    if code := main([stage, "--config", "tiny.toml", "--artifacts", "artifacts"]):
        sys.exit(code)
"""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A temporary copy of the checkout with an example in it."""

    folder: Path

    def run(self, *arguments: str) -> str:
        """Run ``python`` with these arguments in the copy, on the copy's code, and return its standard output.

        Raises:
            RuntimeError: it failed; the message ends with its output.
        """
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.folder / 'src'}{os.pathsep}{self.folder}",
            "PREFECT_HOME": str(self.folder / ".prefect"),
        }
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def tripletune(self, *arguments: str, settings: str = TINY) -> str:
        """Run a command of ``tripletune`` on a small synthetic release and return its output."""
        config = self.folder / "tiny.toml"
        config.write_text(settings, encoding="utf-8")
        return self.run("-m", "tripletune.cli.main", *arguments, "--config", "tiny.toml", "--artifacts", "artifacts")

    def stages(self, *names: str, settings: str = TINY) -> Path:
        """Run stages one after the other in one process (imports take seconds); return the last one's output folder.

        Raises:
            RuntimeError: one failed.
        """
        config = self.folder / "tiny.toml"
        config.write_text(settings, encoding="utf-8")
        self.run("-c", _STAGES, *names)
        (made,) = (path.parent for path in self.folder.glob(f"artifacts/*/{names[-1]}/*/manifest.json"))
        return made

    def changed_lines(self) -> str:
        """``git diff --stat`` of the files that existed before the example was added."""
        return _git(self.folder, "diff", "--stat")


@contextmanager
def with_example(name: str) -> Iterator[Checkout]:
    """Copy the files that git tracks, add the example, and remove the copy at the end."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "tripletune"
        for file in _git(ROOT, "ls-files", "-z").split("\0"):
            if file and (ROOT / file).is_file():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, folder / file)
        _git(folder, "init", "-q")
        _git(folder, "add", "-A")
        example = EXAMPLES / name
        if (example / EDITS).is_file():
            _git(folder, "apply", str(example / EDITS))
        for path in sorted(example.rglob("*")):
            below = path.relative_to(example)
            if path.is_file() and below.name != EDITS and "__pycache__" not in below.parts:
                (folder / below).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / below)
        yield Checkout(folder)


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout
