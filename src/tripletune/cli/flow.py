"""Start a flow of the checkout for a command that is one run of it; the only commands that need Prefect."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tripletune.cli.app import CHECKOUT
from tripletune.errors import UserError
from tripletune.processes.guardian import guard_this_process
from tripletune.store.files import make_folder


def prepare_flow(name: str, artifacts: Path, command: str) -> Callable[..., Any]:
    """A flow of the checkout, for a command that is one run of it.

    Raises:
        UserError: there is no checkout, or the artifact root cannot be made.
    """
    if not (CHECKOUT / "flows").is_dir():
        raise UserError(f"no flows/ in {CHECKOUT}; `{command}` needs the checkout, single stages do not")
    make_folder(artifacts, "--artifacts")
    sys.path.insert(0, str(CHECKOUT))
    flow: Callable[..., Any] = getattr(importlib.import_module(f"flows.{name}"), name)
    guard_this_process()
    return flow
