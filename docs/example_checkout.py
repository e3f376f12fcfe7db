"""Copies of this checkout in which the guides' examples are tried: what they add, and what they change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Checkout:
    """A copy of the tracked files, as they are now, under a Git repository of its own."""

    folder: Path

    @classmethod
    def copy(cls, folder: Path) -> Checkout:
        """Copy this checkout to a new folder."""
        tracked = _git(ROOT, "ls-files", "-z").split("\0")[:-1]
        for name in tracked:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        _git(folder, "init", "--quiet")
        _git(folder, "add", "--all")
        _git(folder, "-c", "user.name=docs", "-c", "user.email=docs@example.org", "commit", "--quiet", "-m", "copy")
        return cls(folder)

    def add(self, source: Path, below: str) -> None:
        """Copy an example's files into a folder of the checkout; none may be there already."""
        for path in sorted(source.rglob("*.*")):
            if path.is_file() and "__pycache__" not in path.parts:
                new = self.folder / below / path.relative_to(source)
                if new.exists():
                    raise FileExistsError(f"{new} is there already; an example only adds files")
                new.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, new)

    def replace(self, file: str, line: str, with_line: str) -> None:
        """Change a line of an existing file; it must stand there exactly once."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        if text.count(f"{line}\n") != 1:
            raise ValueError(f"{file} holds {text.count(line)} lines {line!r}; the example was written for one")
        path.write_text(text.replace(f"{line}\n", f"{with_line}\n"), encoding="utf-8")

    def changes(self) -> str:
        """``git diff --stat`` of the files that were there before; what was added is not in it."""
        return _git(self.folder, "diff", "--stat")

    def changed_lines(self) -> int:
        """Lines of existing files that are new or other than before."""
        rows = _git(self.folder, "diff", "--numstat").splitlines()
        return sum(int(row.split("\t")[0]) for row in rows)

    def tripletune(self, *arguments: str) -> str:
        """What a command of the copy prints.

        Raises:
            RuntimeError: it failed.
        """
        return self.python("-m", "tripletune.cli.main", *arguments)

    def python(self, *arguments: str) -> str:
        """As ``tripletune``, for any arguments of Python."""
        path = os.pathsep.join([str(self.folder / "src"), str(self.folder)])
        environment = {**os.environ, "PYTHONPATH": path, "PREFECT_HOME": str(self.folder / ".prefect")}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-8000:]}")
        return done.stdout


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
