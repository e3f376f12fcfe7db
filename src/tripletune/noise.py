"""Silence lines of libraries that a user can do nothing about.

Set by environment where a library allows it, so that the processes that a stage starts are silenced as well. Nothing
is hidden from a run with ``-v``, which sets ``VERBOSE``.
"""

from __future__ import annotations

import logging
import os
import warnings

VERBOSE = "TRIPLETUNE_VERBOSE"
"""Environment variable; ``1`` shows everything, in the processes of stages too."""

_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # "Loading weights" and "Writing model shards" of transformers too
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # read when it is imported, which sets its level
}
_WARNINGS = ("FutureWarning", "DeprecationWarning", "PendingDeprecationWarning")
"""What libraries have to change before a next version; none of it is wrong today."""
_LEVELS = {
    # a missing optional kernel is said at every import, and what runs without it is as right
    "bitsandbytes.backends.cpu.ops": logging.ERROR,
    # one line for each request, table or file
    **dict.fromkeys(
        ("alembic", "httpx", "httpcore", "urllib3", "botocore", "distributed", "datasets", "mlflow.pyfunc"),
        logging.WARNING,
    ),
    # "creating tables", and of an error, which it raises as well, the traceback
    "mlflow.store.db.utils": logging.CRITICAL,
}


def silence() -> None:
    """Silence them in this process, and in those that it starts from here on; not where ``VERBOSE`` is set."""
    if os.environ.get(VERBOSE) == "1":
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    given = [one for one in os.environ.get("PYTHONWARNINGS", "").split(",") if one]
    ours = [f"ignore::{name}" for name in _WARNINGS]
    os.environ["PYTHONWARNINGS"] = ",".join(dict.fromkeys([*ours, *given]))  # the last one that matches counts
    if not given:
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.filterwarnings("ignore", category=category)
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
