"""What a run puts on its Prefect page: its name, links without passwords, and progress that holds nothing up."""

from __future__ import annotations

import errno
import logging
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks import page, session  # noqa: F401  # the session drops Prefect's lines
from tests.flows.conftest import ROOT
from tripletune import progress
from tripletune.errors import InputError
from tripletune.progress import Reached
from tripletune.tracking import Tracker

START = datetime(2026, 11, 29, 4, 15)


@pytest.mark.parametrize(
    ("flow", "parameters", "name"),
    [
        ("tripletune-nightly", {"config": f"{ROOT}/configs/ml-32m.toml", "set": None}, "ml-32m 2026-11-29 04:15"),
        (
            "tripletune-nightly",
            {"config": f"{ROOT}/configs/smoke.toml", "set": ['dataset="mine"']},
            "mine 2026-11-29 04:15",
        ),
        ("tripletune-nightly", {"config": "nowhere/mine.toml"}, "mine 2026-11-29 04:15"),
        (
            "tripletune-rank-models",
            {"config": "x.toml", "run": "smoke-20261128-041500"},
            "smoke-20261128-041500 rank-models",
        ),
    ],
)
def test_a_flow_run_is_named_by_dataset_and_date_or_by_the_run_it_goes_on_with(monkeypatch, flow, parameters, name):
    run = SimpleNamespace(flow_name=flow, parameters=parameters, scheduled_start_time=START)
    monkeypatch.setattr(page, "flow_run", run)
    assert page.name_flow_run() == name


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for kind in ("link", "markdown"):
        monkeypatch.setattr(
            page,
            f"create_{kind}_artifact",
            lambda text, kind=kind, **more: found.append((kind, {"text": text, **more})),
        )
    return found


def test_links_lead_to_the_mlflow_server_without_the_password(made):
    tracker = Tracker("http://anna:secret@mlflow.example:5000/", "7", "abc")
    page.link_run(tracker, "It **helped**.", {"report": "report.html"}, {"report": Path("/srv/report.html")})
    links = {more["key"]: more["text"] for kind, more in made if kind == "link"}
    assert links == {
        "tripletune-mlflow-run": "http://mlflow.example:5000/#/experiments/7/runs/abc",
        "tripletune-report": "http://mlflow.example:5000/#/experiments/7/runs/abc/artifacts/report.html",
    }
    (text,) = (more["text"] for kind, more in made if kind == "markdown")
    assert "It **helped**." in text
    assert "/srv/report.html" in text
    assert "secret" not in str(made)


def test_a_store_in_a_database_is_named_without_its_password(made):
    page.link_run(Tracker("postgresql://anna:secret@db.example/mlflow", "7", "abc"), "", {}, {})
    assert [kind for kind, _ in made] == ["markdown"]
    assert "postgresql://db.example/mlflow" in made[0][1]["text"]
    assert "secret" not in str(made)


def reached(done: int, what: str = "fit") -> Reached:
    return Reached(what=what, done=done, total=100, unit="steps", seconds_left=None)


def test_progress_does_not_wait_for_the_server_and_the_newest_is_what_it_shows(monkeypatch):
    answers, shown = threading.Event(), list[tuple[str, float]]()

    def create(percent: float, description: str) -> str:
        answers.wait(30)
        shown.append(("create", percent))
        return description.split(":")[0]

    monkeypatch.setattr(page, "create_progress_artifact", create)
    monkeypatch.setattr(
        page, "update_progress_artifact", lambda artifact, percent, description: shown.append((artifact, percent))
    )
    began = time.monotonic()
    with page.progress_on_page():
        watcher = progress._watcher.get()
        assert watcher is not None
        for done in (10, 20, 30, 100):
            watcher(reached(done))
            time.sleep(0.05)
        assert time.monotonic() - began < 5
        answers.set()
    assert shown == [("create", 10.0), ("fit", 100.0)]


def test_a_server_that_refused_is_asked_again_with_the_next_progress(monkeypatch):
    asked = list[float]()

    def create(percent: float, description: str) -> str:
        asked.append(percent)
        if len(asked) == 1:
            raise ConnectionError("down")
        return description

    monkeypatch.setattr(page, "create_progress_artifact", create)
    with page.progress_on_page():
        watcher = progress._watcher.get()
        assert watcher is not None
        watcher(reached(10))
        while not asked:
            time.sleep(0.01)
        watcher(reached(20))
    assert asked == [10.0, 20.0]


@pytest.mark.parametrize(
    ("logger", "line", "error", "is_kept"),
    [
        ("prefect.task_runs", "Finished in state Completed()", None, False),
        ("prefect.flow_runs", "Finished in state Completed()", None, True),
        ("prefect.flow_runs", "Encountered exception", InputError("x"), False),
        ("prefect.task_runs", "Encountered exception", OSError(errno.ENOSPC, "No space left on device"), False),
        ("prefect.task_runs", "Encountered exception", ValueError("a fault of ours"), True),
    ],
)
def test_prefects_lines_that_say_nothing_new_are_dropped(logger, line, error, is_kept):
    shown = list[logging.LogRecord]()
    handler = logging.Handler()
    handler.emit = shown.append  # type: ignore[method-assign]
    log = logging.getLogger(logger)
    log.addHandler(handler)
    try:
        log.handle(logging.LogRecord(logger, logging.INFO, "", 0, line, (), error and (type(error), error, None)))
    finally:
        log.removeHandler(handler)
    assert bool(shown) == is_kept
