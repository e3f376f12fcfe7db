"""What libraries say is silenced, in processes of stages too, but for ``-v``; what they warn of otherwise is not."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from mlflow.exceptions import MlflowException

from tripletune import tracking
from tripletune.config import RunConfig
from tripletune.errors import InputError, UserError, as_user_error
from tripletune.noise import VERBOSE
from tripletune.store.paths import RunPaths
from tripletune.store.runs import list_runs
from tripletune.tracking import Tracker, recorded_run

SPEAK = """
import logging, subprocess, sys, warnings
from tripletune.noise import silence
silence()
def speak():
    warnings.warn("old name", FutureWarning)
    warnings.warn("look here", UserWarning)
    logging.basicConfig(level="INFO")
    for name in ("alembic.runtime.migration", "httpx", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).info("chatter of %s", name)
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("no kernel")
    logging.getLogger("transformers").warning("token ids differ")
speak()
subprocess.run([sys.executable, "-c", "import warnings; warnings.warn('old name', FutureWarning)"])
from huggingface_hub.utils import are_progress_bars_disabled
print(are_progress_bars_disabled())
"""


def speak(**variables: str) -> subprocess.CompletedProcess[str]:
    without = {key: value for key, value in os.environ.items() if key not in ("PYTHONWARNINGS", VERBOSE)}
    without = {key: value for key, value in without.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", SPEAK], env={**without, **variables}, capture_output=True, text=True, check=True
    )


def test_noise_is_silenced_and_warnings_that_matter_are_not():
    done = speak()
    assert "old name" not in done.stderr
    assert "chatter" not in done.stderr
    assert "no kernel" not in done.stderr
    assert "look here" in done.stderr
    assert "token ids differ" in done.stderr
    assert done.stdout == "True\n"


def test_with_v_all_is_shown():
    done = speak(**{VERBOSE: "1"})
    assert done.stderr.count("old name") >= 2
    assert "chatter of httpx" in done.stderr
    assert "no kernel" in done.stderr
    assert done.stdout == "False\n"


def test_filters_that_somebody_set_hold():
    assert "old name" in speak(PYTHONWARNINGS="default::FutureWarning").stderr


FULL = OSError(errno.ENOSPC, "No space left on device", "/mnt/x.parquet")


def behind(error: Exception) -> Exception:
    """An error of a library that was raised for another."""
    try:
        raise RuntimeError("could not write") from error
    except RuntimeError as raised:
        return raised


@pytest.mark.parametrize(
    "error",
    [FULL, behind(FULL), ValueError("I/O error: No space left on device (os error 28)")],
)
def test_a_full_disk_is_one_line(error):
    found = as_user_error(error)
    assert found is not None
    assert str(found).startswith("a disk is full (")
    assert "free space" in str(found)
    assert "\n" not in str(found)


def test_a_users_mistake_stays_as_it_is_and_others_are_none():
    mistake = InputError("x")
    assert as_user_error(mistake) is mistake
    assert as_user_error(ValueError("x")) is None
    assert as_user_error(behind(mistake)) is None  # what follows from handling one may be a fault of ours
    assert isinstance(as_user_error(RuntimeError("(sqlite3.OperationalError) database or disk is full")), UserError)


def test_a_store_on_the_full_disk_does_not_hide_why_the_run_failed(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise MlflowException("(sqlite3.OperationalError) database or disk is full\n[SQL: ...]")

    def fail() -> None:
        with recorded_run(RunConfig(dataset="mine"), RunPaths(root=tmp_path, dataset="mine", fingerprints={}), {}):
            raise InputError("the reason")

    # a store of its own would take seconds to make
    monkeypatch.setattr(tracking, "start_run", lambda *_, **__: Tracker("sqlite://", "1", "abc"))
    monkeypatch.setattr(Tracker, "describe", full)
    with pytest.raises(InputError, match="the reason"):
        fail()
    assert [run.error for run in list_runs(tmp_path)] == ["the reason"]
