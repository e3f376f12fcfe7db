"""The one kind of error a user can act on: one line, no traceback, exit code 2."""

from __future__ import annotations

import errno
import re

_STOPPED = {
    "TerminationSignal": "stopped by SIGTERM: its worker ended, or it was cancelled",
    "SystemExit": "stopped by SIGTERM: its worker ended, or it was cancelled",
    "KeyboardInterrupt": "interrupted with Ctrl-C",
    "CancelledError": "stopped by Prefect: its flow run timed out, or was cancelled",
}
_LOGIN = re.compile(r"(?<=://)\S*@")
_QUERY = re.compile(r"(\w+://[^\s?]*)\?\S+")
_NAMED_SECRET = re.compile(r"(?i)\b(\w*(?:password|passwd|pwd|token|secret|key)[\"']?\s*[=:]\s*|bearer\s+)\S+")


class UserError(Exception):
    """Something the user can repair.

    The message is one line that names the wrong file, field or row, what was expected and what to do.
    The command line prints it after ``tripletune: `` and exits with code 2; anything else keeps its traceback.
    """


class ConfigError(UserError):
    """The configuration is wrong; the message names the key and the keys or values that exist."""


class InputError(UserError):
    """An input file is missing, damaged or of another layout; the message names file and line if it can."""


class MissingArtifactError(UserError):
    """A stage's output is not there; the message gives the command that produces it."""


class DriftError(UserError):
    """This run's shards moved further from the last run's than the limits allow; the message names the page."""


class ContractError(UserError):
    """Prompts and adapter do not belong together; the message names the field that differs."""


class TrainingError(UserError):
    """The training could not run with these settings or in this time; the message names what to change."""


class TrainingDiverged(TrainingError):
    """A loss, a gradient or a weight of the training is NaN or infinite; a second try would only repeat it."""


class NonFiniteError(UserError):
    """A model's weights or logits are NaN or infinite, so its answers mean nothing; the message says whose they are."""


class TrainingCrash(TrainingError):
    """The training process broke off; the message ends with its last lines. A second try may pass, and resumes."""


class RankingCrash(UserError):
    """All ranking processes died; the message ends with their last lines. A second try may pass, and keeps pieces."""


def reason_of(error: BaseException) -> str:
    """Why a run ended, in one line of at most 500 characters that is fit for a log which others read.

    Logins and queries of URLs, and what follows words such as ``password=``, are masked.
    """
    text = str(error).strip() if isinstance(error, Exception) else ""
    line = (text or _STOPPED.get(type(error).__name__, type(error).__name__)).splitlines()[0]
    line = _QUERY.sub(r"\1?***", _LOGIN.sub("***@", line))
    return _NAMED_SECRET.sub(r"\1***", line)[:500]


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("no space left on device", "database or disk is full", "disk quota exceeded")
"""Words of libraries that keep no error number: Polars, PyArrow, safetensors, SQLite."""


def as_user_error(error: BaseException) -> UserError | None:
    """The error as one that a user can repair: one already, or a full disk, also where it stands behind the error."""
    if isinstance(error, UserError):
        return error
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        is_full = isinstance(cause, OSError) and cause.errno in _FULL
        if is_full or any(text in str(cause).lower() for text in _FULL_TEXTS):
            said = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            return UserError(f"a disk is full ({said}); free space, or put --artifacts on another, and run again")
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None
