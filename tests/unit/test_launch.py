"""Training processes: what they say is passed on, and none is left behind, however the end comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tripletune.config import FinetuneConfig
from tripletune.errors import InputError, TrainingError
from tripletune.finetune.checkpoints import SEAL, agreed, is_whole, last_whole, seal
from tripletune.finetune.launch import _curve, _explain, finetune_adapter
from tripletune.processes import lifeline
from tripletune.processes.messages import MARKER, receive
from tripletune.processes.supervise import ProcessFailed, clean_environment, end_noted, run_supervised


def run(tmp_path: Path, script: str, *arguments: str, deadline: float = 60, taken: list[str] | None = None) -> None:
    run_supervised(
        [sys.executable, "-c", script, *arguments],
        environment=os.environ,
        note=tmp_path / "launcher.json",
        deadline_seconds=deadline,
        on_line=lambda line: taken is not None and not taken.append(line),
    )


def test_lines_reach_the_caller_in_order(tmp_path: Path) -> None:
    taken: list[str] = []
    run(tmp_path, "import sys; print('one'); print('two', file=sys.stderr, flush=True)", taken=taken)
    assert sorted(taken) == ["one", "two"]
    assert not (tmp_path / "launcher.json").exists()


def test_a_failing_script_ends_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="exit code 3") as caught:
        run(tmp_path, "for i in range(40): print('line', i)\nraise SystemExit(3)")
    assert caught.value.tail == tuple(f"line {i}" for i in range(25, 40))


def test_lines_that_were_not_read_when_the_script_ended_are_not_lost(tmp_path: Path) -> None:
    """The last one may be the message that says why a training stopped."""
    taken: list[str] = []

    def slowly(line: str) -> bool:
        time.sleep(0.06)
        taken.append(line)
        return True

    run_supervised(
        [sys.executable, "-c", "for i in range(40): print('line', i)"],
        environment=os.environ,
        note=tmp_path / "launcher.json",
        deadline_seconds=60,
        on_line=slowly,
    )
    assert taken == [f"line {i}" for i in range(40)]


def test_a_launcher_left_by_an_earlier_run_is_ended_first(tmp_path: Path) -> None:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    note = tmp_path / "launcher.json"
    note.write_text(json.dumps({"launcher": lifeline.describe(psutil.Process(left.pid))}))
    end_noted(note)
    assert not psutil.pid_exists(left.pid)
    left.wait()


def test_another_process_that_got_the_noted_id_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    created = psutil.Process(other.pid).create_time()
    note = tmp_path / "launcher.json"
    note.write_text(json.dumps({"launcher": f"{other.pid} {created - 1000}"}))
    end_noted(note)
    assert other.poll() is None
    other.kill()
    other.wait()


def test_what_another_launcher_left_in_the_environment_does_not_reach_the_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = clean_environment(10_000, use_cpu=False)
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID"} & environment.keys()
    assert not any(name.startswith("ACCELERATE_") for name in environment)
    assert environment["OMP_NUM_THREADS"] == "1"


def checkpoint(folder: Path, step: int, *, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt", "trainer_state.json"):
        (path / name).write_text(f"{name} {step}")
    if sealed:
        seal(path)
    return path


def test_training_goes_on_from_the_last_checkpoint_that_is_whole(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 9)
    half_removed = checkpoint(tmp_path, 4)
    (half_removed / "optimizer.pt").unlink()
    cut = checkpoint(tmp_path, 100)
    (cut / "optimizer.pt").write_text("")
    unsealed = checkpoint(tmp_path, 110, sealed=False)
    assert last_whole(tmp_path) == whole
    assert not any(path.exists() for path in (half_removed, cut, unsealed))


def test_without_checkpoints_training_starts_over(tmp_path: Path) -> None:
    assert last_whole(tmp_path / "none") is None


@pytest.mark.parametrize(("theirs", "expected"), [([9], 9), ([9, 9], 9), ([9, 4], None), ([9, 0], None)])
def test_ranks_resume_only_from_a_step_that_all_of_them_have(
    tmp_path: Path, theirs: list[int], expected: int | None
) -> None:
    mine = checkpoint(tmp_path, 9)
    assert agreed(mine, lambda own: [*own, *theirs[1:]]) == (mine if expected else None)
    assert agreed(None, lambda own: [*own, *theirs]) is None


def test_a_message_is_told_from_ordinary_output() -> None:
    assert receive(f'{MARKER}{{"kind": "log", "step": 3, "metrics": {{}}}}') == {
        "kind": "log",
        "step": 3,
        "metrics": {},
    }
    assert receive("[rank0]: " + MARKER + '{"kind": "error"}') == {"kind": "error"}
    assert receive("{'loss': 3}") is None
    assert receive(MARKER + '{"kind": "lo') is None


def test_a_users_mistake_inside_a_rank_arrives_as_its_one_line() -> None:
    messages = [{"kind": "crash", "message": "X: y"}, {"kind": "error", "message": "too long"}]
    failure = ProcessFailed("exit code 1", ["Traceback"])
    assert str(_explain(failure, messages, FinetuneConfig())) == "too long"


def test_a_crash_starts_with_its_reason_and_ends_with_the_last_lines() -> None:
    error = _explain(ProcessFailed("exit code 1", ["a", "b"]), [{"kind": "crash", "message": "X: y"}], FinetuneConfig())
    assert isinstance(error, TrainingError)
    assert str(error).splitlines()[0] == "training failed: X: y; its last lines were:"
    assert str(error).endswith("\n  a\n  b")


def test_the_curve_holds_each_metric_of_a_step_once() -> None:
    history = [
        {"step": 5, "loss": 2.0, "epoch": 0.5, "num_tokens": 7.0},
        {"step": 5, "eval_loss": 3.0, "epoch": 0.5, "eval_runtime": 1.0},
        {"step": 5, "eval_loss": 3.0, "epoch": 0.5, "eval_runtime": 2.0},
    ]
    assert _curve(history).rows() == [(5, "epoch", 0.5), (5, "eval_loss", 3.0), (5, "loss", 2.0)]


def test_shards_without_training_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training examples"):
        finetune_adapter(tmp_path, tmp_path / "out", FinetuneConfig(), {}, {}, 0, None)


def test_every_file_of_a_checkpoint_is_flushed_before_its_seal_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path, 3, sealed=False)
    (path / "rng").mkdir()
    (path / "rng" / "state.pth").write_text("x" * 1000)
    files = {file.stat().st_ino: file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    flushed: list[str] = []

    def fsync(descriptor: int) -> None:
        if not (path / SEAL).exists():
            flushed.append(files.get(os.fstat(descriptor).st_ino, "the seal to be"))

    monkeypatch.setattr(os, "fsync", fsync)
    seal(path)
    assert set(flushed) == {*files.values(), "the seal to be"}
    assert json.loads((path / SEAL).read_text()) == {
        name: (path / name).stat().st_size
        for name in ("adapter_model.safetensors", "optimizer.pt", "rng/state.pth", "trainer_state.json")
    }
    assert is_whole(path)
    before = (path / SEAL).read_bytes()
    seal(path)
    assert (path / SEAL).read_bytes() == before  # a seal does not list itself


@pytest.mark.parametrize("damage", ["", "{", '{"gone.bin": 1}'])
def test_a_seal_that_cannot_be_read_or_lists_other_files_seals_nothing(tmp_path: Path, damage: str) -> None:
    path = checkpoint(tmp_path, 3)
    assert is_whole(path)
    (path / SEAL).write_text(damage)
    assert not is_whole(path)
