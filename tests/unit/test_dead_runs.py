"""Runs that were killed are closed by the next start and by ``gc``; those of live processes are left alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tripletune.cli.main import main
from tripletune.config import RunConfig
from tripletune.dead_runs import REASON, close_dead_runs
from tripletune.errors import InputError, reason_of
from tripletune.store.alive import holding, is_alive
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, list_runs, local_run, utc_now, write_run
from tripletune.tracking import DESCRIPTION, FAILURE, PARENT, Tracker, open_registry, recorded_run, stage_run, start_run

HOLD = """
import sys, time
from pathlib import Path
from tripletune.store.alive import holding
with holding(Path(sys.argv[1]), sys.argv[2]):
    print("held", flush=True)
    time.sleep(600)
"""
FOLLOW = """
import time
from tripletune.processes.lifeline import end_with_parent
end_with_parent()
print("up", flush=True)
time.sleep(600)
"""
LONG_AGO = "2026-01-01T00:00:00Z"
SETTINGS = RunConfig(dataset="films")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs, whose tables take a second or two to make."""
    root = tmp_path_factory.mktemp("store")
    open_registry(SETTINGS.tracking, root)
    return root / "mlflow.db"


@pytest.fixture
def root(store: Path, tmp_path: Path) -> Path:
    shutil.copy(store, tmp_path / "mlflow.db")
    (tmp_path / "runs").mkdir()
    return tmp_path


def begin(root: Path, **more: str) -> RunRecord:
    """A run that has begun its first stage, as its process leaves it when it is killed."""
    tracker = start_run(SETTINGS.tracking, root, "films-1", params={}, tags={})
    tracker.client().create_run(tracker.experiment_id, tags={PARENT: tracker.parent_run_id, "stage": "split"})
    ids = {"mlflow_run_id": tracker.parent_run_id, "mlflow_experiment_id": tracker.experiment_id}
    fields = {"name": "films-1", "dataset": "films", "status": "running", "started": utc_now(), "fingerprints": {}}
    record = RunRecord.model_validate({**fields, "config": SETTINGS.model_dump(mode="json"), **ids, **more})
    write_run(root, record)
    return record


def started_by(code: str, *arguments: str, says: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == says
    return process


def all_in_mlflow(root: Path, record: RunRecord) -> list[tuple[str, str, str]]:
    """Status, reason and description of a run and its stages."""
    runs = MlflowClient(f"sqlite:///{root / 'mlflow.db'}").search_runs([record.mlflow_experiment_id])
    return [(run.info.status, run.data.tags.get(FAILURE), run.data.tags.get(DESCRIPTION)) for run in runs]


def test_a_killed_run_is_closed_with_its_stages_once_its_process_is_gone(root):
    record = begin(root)
    process = started_by(HOLD, str(root), record.name, says="held\n")
    try:
        assert close_dead_runs(root) == []
        assert is_alive(root, record)
    finally:
        process.kill()
        process.wait()
    assert not is_alive(root, record)
    assert close_dead_runs(root) == [record.name]
    closed = local_run(root, record.name)
    assert (closed.status, closed.error) == ("killed", REASON)
    assert closed.finished
    assert all_in_mlflow(root, closed) == [("KILLED", REASON, f"**Killed:** {REASON}\n")] * 2
    assert close_dead_runs(root) == []


def test_a_young_run_without_a_lock_is_left_and_an_old_one_is_closed(root):
    begin(root)
    assert close_dead_runs(root) == []
    begin(root, started=LONG_AGO)
    assert close_dead_runs(root) == ["films-1"]


def test_gc_names_a_dead_run_and_closes_it_with_delete(root, capsys):
    begin(root, started=LONG_AGO)
    assert main(["gc", "--artifacts", str(root)]) == 0
    assert "films-1: its process is gone; --delete closes it" in capsys.readouterr().out
    assert local_run(root, "films-1").status == "running"
    assert main(["gc", "--delete", "--artifacts", str(root)]) == 0
    assert "films-1: closed as killed" in capsys.readouterr().out
    assert local_run(root, "films-1").status == "killed"


def test_a_run_stays_open_while_mlflow_cannot_be_reached(root, monkeypatch, caplog):
    record = begin(root, started=LONG_AGO)

    def away(self: Tracker) -> bool:
        raise ConnectionError("http://me:secret@host/ does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "is_running", away)
        assert close_dead_runs(root) == []
    assert list_runs(root) == [record]
    assert "does not answer" in caplog.text
    assert "secret" not in caplog.text
    assert close_dead_runs(root) == ["films-1"]


@pytest.mark.parametrize(
    ("error", "status", "in_mlflow"),
    [(ValueError("no\nsecond line"), "failed", "FAILED"), (SystemExit(), "killed", "KILLED")],
)
def test_a_run_that_ends_badly_says_why_in_its_file_and_in_mlflow(root, error, status, in_mlflow):
    paths = RunPaths(root=root, dataset="films", fingerprints={})
    with (
        pytest.raises(type(error)),
        recorded_run(SETTINGS, paths, {}) as (name, tracker),
        stage_run(tracker, "split", {}),
    ):
        raise error
    record = local_run(root, name)
    reason = reason_of(error)
    assert (record.status, record.error) == (status, reason)
    assert {(one, why) for one, why, _ in all_in_mlflow(root, record)} == {(in_mlflow, reason)}
    assert close_dead_runs(root) == []


def test_trouble_with_mlflow_does_not_hide_why_a_run_failed(root, monkeypatch, caplog):
    def away(self: Tracker, *_: object) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr(Tracker, "close", away)
    paths = RunPaths(root=root, dataset="films", fingerprints={})
    with pytest.raises(ValueError, match="why"), recorded_run(SETTINGS, paths, {}):
        raise ValueError("why")
    assert "no answer" in caplog.text


def test_a_run_that_is_gone_on_with_loses_the_reason_of_its_first_end(root):
    paths = RunPaths(root=root, dataset="films", fingerprints={})
    with pytest.raises(ValueError, match="once"), recorded_run(SETTINGS, paths, {}) as (name, _):
        raise ValueError("once")
    with recorded_run(SETTINGS, paths, {}, local_run(root, name)):
        pass
    record = local_run(root, name)
    assert (record.status, record.error) == ("completed", "")
    assert [(status, why) for status, why, _ in all_in_mlflow(root, record)] == [("FINISHED", None)]


def test_a_run_is_held_from_its_start_to_its_end_and_a_second_process_waits(root, monkeypatch, caplog):
    monkeypatch.setattr("tripletune.store.alive._LOOK_SECONDS", 0.1)
    paths = RunPaths(root=root, dataset="films", fingerprints={})
    has_it = threading.Event()

    def take(name: str) -> None:
        with holding(root, name):
            has_it.set()

    with recorded_run(SETTINGS, paths, {}) as (name, _):
        second = threading.Thread(target=take, args=(name,))
        second.start()
        assert not has_it.wait(0.5)
    assert has_it.wait(10)
    second.join()
    assert f"run {name} is going on in another process" in caplog.text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("postgresql://me:a/b@c@host/db refused", "postgresql://***@host/db refused"),
        ("GET https://host/file?sig=abc&x=1 failed", "GET https://host/file?*** failed"),
        ("connect: password=hunter2 user=me", "connect: password=*** user=me"),
        ("AWS_SECRET_ACCESS_KEY: abc, and so on", "AWS_SECRET_ACCESS_KEY: *** and so on"),
        ("Bearer abc.def is not taken", "Bearer *** is not taken"),
        ("a prompt has 3 tokens: more than 2", "a prompt has 3 tokens: more than 2"),
        ("", "ValueError"),
    ],
)
def test_a_reason_is_one_line_without_secrets(text, line):
    assert reason_of(ValueError(f"{text}\nmore" if text else "")) == line


def test_a_process_ends_soon_after_its_parent():
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FOLLOW!r}])"
    process = started_by(parent, says="up\n")
    process.kill()
    started = time.monotonic()
    assert process.stdout is not None
    assert process.stdout.read() == ""  # the child held the other end of the pipe
    assert time.monotonic() - started < 20
    process.wait()


def test_the_shared_store_learns_of_a_killed_run_and_may_be_away(root, monkeypatch, caplog):
    monkeypatch.setenv("TRIPLETUNE_SHARED_STORE", "s3://bucket/films")
    pushed = []

    def push(address: str, path: Path) -> None:
        pushed.append((address, json.loads(path.read_text())["status"]))
        raise InputError("no answer")

    monkeypatch.setattr("tripletune.store.shared.push_run", push)
    begin(root, started=LONG_AGO)
    assert close_dead_runs(root) == ["films-1"]
    assert pushed == [("s3://bucket/films", "killed")]
    assert "the shared store does not know that films-1 was killed: no answer" in caplog.text
