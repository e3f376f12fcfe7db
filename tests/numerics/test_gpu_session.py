"""Output of a measurement on a GPU machine: figures of work of known size, and a file however it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.benchmark_scripts import benchmark_script

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def session():
    with benchmark_script("gpu/session") as module:
        yield module


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def run_until_cut(out: Path, work: str, seconds: float) -> tuple[subprocess.CompletedProcess[str], float]:
    script = (
        f"import sys, time, threading; sys.path.insert(0, {str(SCRIPTS)!r})\n"
        "import torch, session; from pathlib import Path\n"
        "session.GRACE_SECONDS = 1.0\n"
        f"with session.Session('trial', torch.device('cpu'), Path({str(out)!r}), {seconds / 60}) as it:\n"
        "    it.record('first', 1)\n"
        f"    {work}\n"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    return done, time.monotonic() - start


def test_the_deadline_ends_the_process_and_keeps_what_was_measured(tmp_path):
    done, took = run_until_cut(tmp_path / "results.json", "time.sleep(100)", 2.0)
    assert done.returncode == 3
    assert done.stderr == "trial: cut at its deadline; measured so far: first\n"
    assert took < 60
    page = read(tmp_path / "results.json")
    assert page["ended"] == "deadline"
    assert page["results"] == {"first": 1}
    assert page["seconds"] >= 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_process_whose_threads_are_held_up_ends_too(tmp_path):
    # the thread that should write the file waits for this lock for ever, as it would for a call that keeps the GIL
    done, took = run_until_cut(tmp_path / "results.json", "it._lock.acquire(); time.sleep(100)", 2.0)
    assert done.returncode != 0
    assert took < 60
    assert read(tmp_path / "results.json")["results"] == {"first": 1}


def test_an_error_is_named_in_the_file_and_raised(session, tmp_path):
    out = tmp_path / "folder" / "results.json"

    def fail() -> None:
        with session.Session("trial", CPU, out) as it:
            it.record("first", 1)
            assert read(out)["ended"] == "running"  # what a kill from outside would leave
            it.record("second", 1 // 0)

    with pytest.raises(ZeroDivisionError):
        fail()
    assert read(out)["ended"].startswith("error: ZeroDivisionError: ")
    assert read(out)["results"] == {"first": 1}


def test_a_session_that_is_complete_is_not_cut_afterwards(session, tmp_path, monkeypatch):
    exits = []
    monkeypatch.setattr(session.os, "_exit", exits.append)
    with session.Session("trial", CPU, tmp_path / "results.json", minutes=1) as it:
        assert 0 < it.seconds_left <= 60
    it._cut()
    assert not exits
    assert read(tmp_path / "results.json")["ended"] == "complete"


@pytest.mark.parametrize("minutes", [0, -1, 12.5, float("nan")])
def test_no_script_may_ask_a_gpu_for_more_than_twelve_minutes(session, tmp_path, minutes):
    with pytest.raises(SystemExit, match="--minutes must be above 0 and at most 12, got"):
        session.Session("trial", torch.device("cuda"), tmp_path / "results.json", minutes)


def test_a_processor_may_take_a_day(session, tmp_path):
    session.Session("trial", CPU, tmp_path / "results.json", 1440)
    with pytest.raises(SystemExit, match="--minutes must be above 0 and at most 1440, got 1441"):
        session.Session("trial", CPU, tmp_path / "results.json", 1441)


def test_rates_count_bytes_read_and_written_and_two_operations_per_product(session, monkeypatch):
    monkeypatch.setattr(session, "time_rounds", lambda work, device: [0.25, 0.5, 1.0])
    copied = session.copy_rate(CPU, 1_000_000)["gb_per_s"]
    assert copied == pytest.approx({"median": 0.004, "min": 0.002, "max": 0.008})
    product = session.bf16_product_rate(CPU, 100)["tflop_per_s"]
    assert product == pytest.approx({"median": 4e-6, "min": 2e-6, "max": 8e-6})


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_only_rounds_after_the_warm_up_are_timed(session, device):
    calls = []

    def work() -> None:
        calls.append(1)
        if device == "cpu":
            time.sleep(0.2 if len(calls) <= 2 else 0.001)
        else:
            torch.randn(1024, device=device)

    seconds = session.time_rounds(work, torch.device(device), rounds=3, warm_ups=2)
    assert len(calls) == 5
    assert len(seconds) == 3
    assert all(0 < one < 0.1 for one in seconds)


@pytest.mark.gpu
def test_a_gpu_is_named_with_its_driver(session):
    facts = session.environment(torch.device("cuda"))
    assert facts["card"] == torch.cuda.get_device_name()
    assert facts["driver"]
    assert facts["cuda"] == torch.version.cuda
