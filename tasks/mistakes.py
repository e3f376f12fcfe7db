"""A user's mistake in the log of a flow run: one line, on a worker's console, on Prefect's page and under a command."""

from __future__ import annotations

import logging

from tripletune.errors import UserError

_REPEATS = ("Engine execution exited", "Execution of flow run", "Execution exited")
"""Start of lines with which Prefect's engine repeats the error of a flow run that has failed."""


def keep_to_one_line() -> None:
    """Show an error that the user can repair without its traceback, and not again where Prefect's engine ends by it."""
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_shorten)


def _shorten(line: logging.LogRecord) -> bool:
    if not (line.exc_info and isinstance(line.exc_info[1], UserError)):
        return True
    line.exc_info = None
    return not str(line.msg).startswith(_REPEATS)
