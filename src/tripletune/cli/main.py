"""``tripletune``: the whole run, any single stage, and commands that read a run's outputs.

``run`` starts the Prefect flow; every other command works without Prefect. Expected mistakes end in one line on
stderr and exit code 2; anything else keeps its traceback. The commands are in the modules imported here, in the order
of the help page.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from tripletune import __version__

from tripletune.cli import data, run, doctor, cost, look, compare, ablate, backfill, serve, export, stages  # noqa: F401  # isort: skip
from tripletune.cli.app import app, console
from tripletune.cli.logs import show_own_lines
from tripletune.errors import UserError, as_user_error
from tripletune.noise import VERBOSE, silence

_TAKES_ALL = frozenset(("replace", "backslashreplace", "namereplace", "xmlcharrefreplace", "ignore"))
"""Ways of writing characters that an encoding lacks, of which none raises."""


def _print_version(asked: bool) -> None:
    if asked:
        console().print(__version__)
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show debugging lines, and the libraries' own warnings and bars.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and results alone.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What is shown on stderr while a command works; results are on stdout."""
    if verbose and quiet:
        raise typer.BadParameter("give --verbose or --quiet, not both")
    show_own_lines(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    if verbose:
        os.environ[VERBOSE] = "1"  # processes of stages read it too
    else:
        silence()


def _write_any_title() -> None:
    """Show escapes such as ``\\xe9`` for characters that the output's encoding lacks (an ASCII or Latin-1 locale)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors not in _TAKES_ALL:
            stream.reconfigure(errors="backslashreplace")


def _with_home(word: str) -> str:
    """A word of the command line with the home folder for a ~ that the shell left: bash does in ``--out=~/recs``."""
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_home = value == "~" or value.startswith("~/")
    return f"{name}{equals}{Path(value).expanduser()}" if is_home else word


def _require_names(texts: Sequence[str]) -> None:
    """Refuse names whose bytes the locale could not read: Polars and others take UTF-8 alone, and fail in mid-stage.

    Raises:
        UserError: an argument, or the working folder, is such a name.
    """
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            shown = os.fsencode(text).decode("utf-8", "backslashreplace")
            raise UserError(
                f"{shown!r} cannot be read in this locale ({sys.getfilesystemencoding()} for file names); "
                "export PYTHONUTF8=1, or rename it to letters of UTF-8"
            ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    _write_any_title()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    show_own_lines(logging.INFO)
    try:
        words = [_with_home(word) for word in (sys.argv[1:] if argv is None else argv)]
        _require_names([*words, str(Path.cwd())])
        code = app(args=words, standalone_mode=False)
    except UserError as error:
        print(f"tripletune: {error}", file=sys.stderr)
        return 2
    except typer.Abort:
        return 130
    except Exception as error:
        # click's own errors print themselves: usage, then one line, exit code 2
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        if mistake := as_user_error(error):
            print(f"tripletune: {mistake}", file=sys.stderr)
            return 2
        raise
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    raise SystemExit(main())
