"""Prefect's own log lines: those that say nothing new are dropped, on the console and on its page."""

from __future__ import annotations

import logging

from tripletune.errors import as_user_error


def drop_echoes() -> None:
    """Drop how each task ended, which the stage's own line says with more, and what Prefect and its engine, which a
    worker starts, say of a user's mistake with its traceback: it stands in the state of the run."""
    logging.getLogger("prefect.task_runs").addFilter(_says_more)
    for name in ("prefect.task_runs", "prefect.flow_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_is_no_mistake)


def _says_more(line: logging.LogRecord) -> bool:
    return not line.getMessage().startswith("Finished in state")


def _is_no_mistake(line: logging.LogRecord) -> bool:
    error = line.exc_info[1] if line.exc_info else None
    return error is None or as_user_error(error) is None
