"""Start a flow of the checkout for a command that is one run of it; the only commands that need Prefect."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tripletune.cli.app import CHECKOUT
from tripletune.cli.logs import share_screen_with_prefect
from tripletune.errors import UserError
from tripletune.processes.guardian import guard_this_process
from tripletune.store.files import make_folder


def prepare_flow(name: str, artifacts: Path, command: str) -> Callable[..., Any]:
    """A flow of the checkout, for a command that is one run of it.

    Raises:
        UserError: there is no checkout, the artifact root cannot be made, or no Prefect server answers at the address
            that the settings name.
    """
    if not (CHECKOUT / "flows").is_dir():
        raise UserError(f"no flows/ in {CHECKOUT}; `{command}` needs the checkout, single stages do not")
    make_folder(artifacts, "--artifacts")
    sys.path.insert(0, str(CHECKOUT))
    flow: Callable[..., Any] = getattr(importlib.import_module(f"flows.{name}"), name)
    importlib.import_module("tasks.server").require_prefect()
    share_screen_with_prefect()
    guard_this_process()
    return flow
