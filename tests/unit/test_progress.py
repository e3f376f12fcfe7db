"""Progress: lines at sane intervals, percentages, time left, one live line on a terminal, and watchers."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console

from tripletune import progress
from tripletune.cli.logs import OwnLines
from tripletune.progress import LONGEST, SHORTEST, Progress, Reached, Screen, duration, watched_by


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logging.getLogger("tripletune").propagate = True  # the command line, run by another test, leaves it off
    with caplog.at_level("INFO", logger=progress.__name__):
        yield caplog


def work(clock: Clock, total: int, seconds: float, **more: object) -> list[float]:
    """Do all units, each in so many seconds; returns when lines were due, as seen by a watcher."""
    due: list[float] = []
    with watched_by(lambda reached: due.append(clock.now - 100)), Progress("x", total, clock=clock, **more) as bar:
        for _ in range(total):
            clock.now += seconds
            bar.advance()
    return due[:-1] if due else []  # the last one says that it ended


def test_a_line_says_percentage_counts_time_left_and_the_note(clock, heard):
    with Progress("LightGCN, fit b", 500, done=100, at_most=True, clock=clock) as bar:  # another process took 100
        for step in range(101, 201):
            clock.now += 2.0
            bar.reach(step, "loss 1.5" if step == 150 else "")
    assert heard.messages == [
        "LightGCN, fit b: 30 %, 150 of 500 steps, 11:40 left at most; loss 1.5",
        "LightGCN, fit b: 40 %, 200 of 500 steps, 10:00 left at most; loss 1.5",
    ]


def test_short_work_writes_no_line(clock, heard):
    assert work(clock, 100, (SHORTEST - 1) / 100) == []
    assert not heard.messages


@pytest.mark.parametrize(
    ("total", "seconds", "expected"),
    [
        (10, 12.0, [36.0, 72.0, 108.0]),  # a tenth in less than SHORTEST waits for it
        (10, 60.0, [60.0 * step for step in range(1, 11)]),  # each tenth
        (1000, 6.0, [300.0 * number for number in range(1, 21)]),  # less than a tenth in LONGEST
    ],
)
def test_lines_come_at_tenths_not_below_the_shortest_nor_above_the_longest_pause(clock, total, seconds, expected):
    assert LONGEST == 300.0
    assert SHORTEST == 30.0
    assert work(clock, total, seconds) == pytest.approx(expected)


def test_size_and_place_may_be_known_only_when_the_work_runs(clock, heard):
    with Progress("finetune", 0, clock=clock) as bar:
        clock.now += 100.0  # libraries load: no part of the pace
        bar.begin(40, 140)  # resumed
        clock.now += 50.0
        bar.reach(90)
    assert heard.messages == ["finetune: 64 %, 90 of 140 steps, 0:50 left"]


def test_a_watcher_sees_the_end_of_work_that_stopped_early_as_all_of_it(clock):
    seen: list[Reached] = []
    with watched_by(seen.append), Progress("fit", 100, at_most=True, clock=clock) as bar:
        clock.now += 40.0
        bar.reach(20)
        bar.reach(25)
    assert [(one.done, one.percent) for one in seen] == [(20, 20.0), (25, 100.0)]


def test_a_watcher_hears_no_end_of_work_that_failed(clock):
    seen: list[Reached] = []

    def fail() -> None:
        with watched_by(seen.append), Progress("fit", 100, clock=clock) as bar:
            clock.now += 40.0
            bar.reach(20)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert [one.done for one in seen] == [20]


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "1:00"), (3723, "1:02:03"), (0, "0:00")])
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    screen.console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "_screen", screen)
    return screen


def shown(screen: Screen) -> str:
    assert isinstance(screen.console.file, io.StringIO)
    return screen.console.file.getvalue()


def test_a_terminal_shows_a_live_line_for_each_work_and_no_line_of_the_log(clock, terminal):
    handler = OwnLines()
    with Progress("rgat", 10, clock=clock) as one, Progress("lightgcn", 20, clock=clock) as other:
        assert terminal.is_live
        clock.now += 60.0
        one.reach(5)
        other.reach(5)
        assert terminal._bars is not None
        terminal._bars.refresh()  # it does so ten times a second
        handler.handle(logging.makeLogRecord({"name": progress.__name__, "msg": "rgat: a line of the log"}))
        handler.handle(logging.makeLogRecord({"name": "tripletune.x", "msg": "something else"}))
    assert not terminal.is_live
    text = shown(terminal)
    assert "rgat: 50 %, 5 of 10 steps, 1:00 left" in text
    assert "lightgcn: 25 %, 5 of 20 steps, 3:00 left" in text
    assert "something else" in text
    assert "a line of the log" not in text


def test_with_q_there_is_no_live_line(clock, terminal):
    terminal.is_quiet = True
    with Progress("rgat", 10, clock=clock):
        assert not terminal.is_live


def test_without_a_terminal_there_is_no_live_line(clock, monkeypatch):
    screen = Screen()
    screen.console = Console(file=io.StringIO(), width=100)
    monkeypatch.setattr(progress, "_screen", screen)
    with Progress("rgat", 10, clock=clock) as bar:
        bar.reach(5)
        assert not screen.is_live
    assert shown(screen) == ""
