"""The live curve of a training: a server that fails or hangs neither ends nor delays it, and misses nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from tripletune.config import TrackingConfig
from tripletune.finetune import live_log
from tripletune.finetune.live_log import LiveLog
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord
from tripletune.tracked_results import add_link
from tripletune.tracking import StageRun, Tracker, stage_run, start_run

POINTS = [(step, {"loss": 10.0 / step, "epoch": step / 5}) for step in range(1, 9)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_log, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(live_log, "LONGEST_PAUSE", 0.04)


class Server:
    """Takes points unless it is down; remembers what it took."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, Mapping[str, float]]] = []
        self.down = threading.Event()
        self.calls = 0

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        self.calls += 1
        if self.down.is_set():
            raise ConnectionError("the server is down\nand this is a second line")
        self.taken.append((step, metrics))

    def wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not ready():
            assert time.monotonic() < deadline
            time.sleep(0.002)


def test_points_arrive_in_order_and_once() -> None:
    server = Server()
    live = LiveLog(server)
    for point in POINTS:
        live.put(*point)
    assert live.close(10) == 0
    assert server.taken == POINTS


def test_points_logged_while_the_server_is_down_arrive_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    live = LiveLog(server)
    with caplog.at_level(logging.WARNING, logger="tripletune"):
        for number, point in enumerate(POINTS):
            if number in (2, 5):
                server.down.set()
            if number == 4:
                server.down.clear()
            live.put(*point)
            if number == 3:
                server.wait(lambda: server.calls >= 8)  # several vain tries
        server.down.clear()
        assert live.close(10) == 0
    assert server.taken == POINTS
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "the server is down" in warnings[0]
    assert "\n" not in warnings[0]


def test_a_server_that_comes_back_after_the_last_step_still_gets_the_points() -> None:
    server = Server()
    server.down.set()
    live = LiveLog(server)
    for point in POINTS:
        live.put(*point)
    threading.Timer(0.2, server.down.clear).start()
    assert live.close(10) == 0
    assert server.taken == POINTS


def test_a_server_that_stays_down_is_given_up_and_the_loss_is_told(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    live = LiveLog(server)
    live.put(*POINTS[0])
    server.wait(lambda: len(server.taken) == 1)
    server.down.set()
    for point in POINTS[1:]:
        live.put(*point)
    started = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="tripletune"):
        assert live.close(0.2) == len(POINTS) - 1
    assert time.monotonic() - started < 5
    assert "7 points" in caplog.records[-1].getMessage()
    calls = server.calls
    server.down.clear()
    time.sleep(0.1)
    assert server.calls <= calls + 1  # the try that was under way
    assert len(server.taken) <= 2


def test_a_server_that_hangs_delays_neither_the_training_nor_its_end() -> None:
    released = threading.Event()
    live = LiveLog(lambda step, metrics: released.wait(30) and None)
    started = time.monotonic()
    for point in POINTS:
        live.put(*point)
    assert time.monotonic() - started < 1
    assert live.close(0.1) == len(POINTS)
    assert time.monotonic() - started < 5
    released.set()


def test_pauses_grow_while_the_server_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_log, "LONGEST_PAUSE", 10.0)
    server = Server()
    server.down.set()
    live = LiveLog(server)
    live.put(*POINTS[0])
    time.sleep(0.6)
    for point in POINTS[1:]:
        live.put(*point)  # a new point is no reason to try sooner
    assert 3 <= server.calls <= 7  # .01 + .02 + ... + .32 s
    server.down.clear()
    assert live.close(10) == 0
    assert server.taken == POINTS


@pytest.fixture
def stage(tmp_path: Path) -> StageRun:
    tracker = start_run(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db"), tmp_path, "run", params={}, tags={})
    with stage_run(tracker, "finetune", {}) as child:
        return child


def test_mlflow_holds_each_point_once_also_when_the_error_came_after_the_writing(
    stage: StageRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = Tracker.log, 0

    def flaky(self: Tracker, run_id: str, **entries: object) -> None:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            raise MlflowException("the database is locked")
        write(self, run_id, **entries)  # type: ignore[arg-type]
        if calls % 3 == 2:
            raise ConnectionError("the answer was lost")

    monkeypatch.setattr(Tracker, "log", flaky)
    live = LiveLog(stage.log_curve)
    for step, metrics in POINTS:
        live.put(step, metrics)
        live.put(step, {"eval_loss": metrics["loss"] + 1})
    assert live.close(60) == 0
    assert calls == 3 * 2 * len(POINTS)
    client = MlflowClient(stage.tracker.uri)
    for name in ("loss", "epoch"):
        history = client.get_metric_history(stage.run_id, name)
        assert [(point.step, point.value) for point in history] == [(step, each[name]) for step, each in POINTS]
    assert [point.step for point in client.get_metric_history(stage.run_id, "eval_loss")] == [s for s, _ in POINTS]


CURVE = pl.DataFrame(
    [(step, name, value) for step, each in [(0, {"eval_loss": 9.0}), *POINTS] for name, value in each.items()],
    schema={"step": pl.Int32, "metric": pl.String, "value": pl.Float64},
    orient="row",
)
"""Of the training whose live points are ``POINTS``, and of a step before it was killed and resumed."""


def logged(stage: StageRun) -> list[tuple[int, str, float]]:
    client = MlflowClient(stage.tracker.uri)
    histories = [client.get_metric_history(stage.run_id, name) for name in CURVE["metric"].unique()]
    return sorted((point.step, point.key, point.value) for history in histories for point in history)


@pytest.mark.parametrize("reused", [False, True])
def test_points_that_a_server_missed_until_the_end_follow_with_the_output(
    stage: StageRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reused: bool
) -> None:
    write, calls, back = Tracker.log, 0, threading.Event()

    def down(self: Tracker, run_id: str, **entries: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 4 and not back.is_set():
            raise ConnectionError("no route to host")
        write(self, run_id, **entries)  # type: ignore[arg-type]
        if calls == 4 and not back.is_set():
            raise ConnectionError("the answer was lost")

    def make(work: Path) -> dict[str, float]:
        CURVE.write_parquet(work / "curve.parquet")
        return {"steps": 8, "eval_loss": 9.0}

    monkeypatch.setattr(Tracker, "log", down)
    paths = RunPaths(root=tmp_path / "artifacts", dataset="toy", fingerprints={"finetune": "f" * 32})
    paths.build("finetune", make)
    if not reused:
        live = LiveLog(stage.log_curve)
        for point in POINTS:
            live.put(*point)
        assert live.close(0.3) == len(POINTS) - 3
    back.set()
    time.sleep(0.1)  # the try that was under way
    stage.log_output(paths, "finetune", reused=reused)
    assert logged(stage) == sorted(CURVE.rows())
    (steps,) = MlflowClient(stage.tracker.uri).get_metric_history(stage.run_id, "steps")
    assert (steps.step, steps.value) == (8, 8)  # with the last point of the curve


def test_a_child_carries_its_settings_and_the_parent_a_description(stage: StageRun) -> None:
    tracker, client = stage.tracker, MlflowClient(stage.tracker.uri)
    with stage_run(tracker, "finetune", {}, name="finetune tiny sft", params={"finetune.lora_r": 8}) as child:
        pass
    made = client.get_run(child.run_id)
    assert (made.info.run_name, made.data.tags["stage"]) == ("finetune tiny sft", "finetune")
    assert made.data.params == {"finetune.lora_r": "8"}
    tracker.describe("**what**\n", {"report": "report.html"})
    note = client.get_run(tracker.parent_run_id).data.tags["mlflow.note.content"]
    path = f"#/experiments/{tracker.experiment_id}/runs/{tracker.parent_run_id}/artifacts/report.html"
    assert note == f"**what**\n\n[report]({path})\n"
    record = RunRecord(
        name="one", dataset="toy", status="completed", started="", config={"tracking": {"uri": tracker.uri}},
        fingerprints={}, mlflow_run_id=tracker.parent_run_id, mlflow_experiment_id=tracker.experiment_id,
    )  # fmt: skip
    for _ in range(2):
        add_link(client, record, "compared with two", "compared/two/comparison.html")
    note = client.get_run(tracker.parent_run_id).data.tags["mlflow.note.content"]
    assert note.startswith("**what**")
    assert note.count("[compared with two](#/experiments/") == 1


def test_a_figure_ends_at_the_last_step_and_has_one_value_there(stage: StageRun, tmp_path: Path) -> None:
    def make(work: Path) -> dict[str, float]:
        CURVE.write_parquet(work / "curve.parquet")
        return {"eval_loss": 9.0, "train_loss": 7.0, "tokens_per_second": 11.0, "examples": 3}

    paths = RunPaths(root=tmp_path / "artifacts", dataset="toy", fingerprints={"finetune": "f" * 32})
    paths.build("finetune", make)
    stage.log_curve(5, {"tokens_per_second": 10.0})
    stage.log_curve(8, {"train_loss": 2.0})
    stage.log_output(paths, "finetune", reused=False)
    client = MlflowClient(stage.tracker.uri)
    expected = {"tokens_per_second": [(5, 10.0), (8, 11.0)], "train_loss": [(8, 2.0)], "examples": [(8, 3.0)]}
    for name, points in expected.items():
        assert [(one.step, one.value) for one in client.get_metric_history(stage.run_id, name)] == points
    assert client.get_run(stage.run_id).data.metrics["tokens_per_second"] == 11.0
