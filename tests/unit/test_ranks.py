"""Ranks of a training: GPUs are counted, a step's examples shared, and what cannot be shared is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from tripletune.config import FinetuneConfig
from tripletune.errors import ConfigError
from tripletune.finetune.ranks import (
    Ranks,
    accumulated_batches,
    check_ranks,
    read_ranks,
    require_machine,
    settings_sha256,
    write_launch_config,
)

ACCELERATE = Path(__file__).parents[2] / "configs" / "accelerate"


def with_gpus(patch: pytest.MonkeyPatch, number: int) -> None:
    patch.setattr(torch.cuda, "device_count", lambda: number)


def write(path: Path, **settings: object) -> Path:
    path.write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU", "num_processes": "auto", **settings}))
    return path


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("single.yaml", 0, Ranks(1, False)),
        ("single.yaml", 4, Ranks(1, False)),
        ("ddp.yaml", 0, Ranks(1, False)),
        ("ddp.yaml", 1, Ranks(1, False)),
        ("ddp.yaml", 8, Ranks(8, False)),
        ("fsdp.yaml", 1, Ranks(1, False, True)),
        ("fsdp.yaml", 8, Ranks(8, False, True)),
        ("cpu-2.yaml", 0, Ranks(2, True)),
        ("cpu-2-fsdp.yaml", 0, Ranks(2, True, True)),
        ("machines.yaml", 0, Ranks(2, False, False, 2)),
        ("machines.yaml", 8, Ranks(16, False, False, 2)),
    ],
)
def test_the_shipped_accelerate_files_say_how_many_processes_run(
    monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, expected: Ranks
) -> None:
    with_gpus(monkeypatch, gpus)
    assert read_ranks(ACCELERATE / name) == expected


def test_gpus_that_a_file_names_by_number_are_those_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 8)
    assert read_ranks(write(tmp_path / "some.yaml", gpu_ids="2,5,6")).number == 3
    assert read_ranks(write(tmp_path / "cpu.yaml", use_cpu=True)).number == 1


def test_more_processes_than_gpus_are_refused_but_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    with pytest.raises(ConfigError, match=r"num_processes = 3, and 2 GPUs in sight; set it to auto or to 2") as caught:
        read_ranks(write(tmp_path / "three.yaml", num_processes=3))
    assert "\n" not in str(caught.value)
    assert read_ranks(write(tmp_path / "two.yaml", num_processes=2)).number == 2
    assert read_ranks(write(tmp_path / "cpu.yaml", num_processes=3, use_cpu=True)).number == 3


@pytest.mark.parametrize("content", ["- 1", "num_processes: none\n", "num_processes: 0\n", "a: 1\n"])
def test_a_file_without_a_number_is_refused_and_a_missing_one_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"not an accelerate config with num_processes \(a number from 1, or auto\)"):
        read_ranks(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match=r"single\.yaml"):
        read_ranks(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("ranks", "multi", "number"), [(Ranks(1, False), False, 1), (Ranks(2, False), True, 2), (Ranks(8, False), True, 8)]
)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_accelerate_takes_the_copy_with_the_number_in_place_of_auto(
    tmp_path: Path, kind: str, ranks: Ranks, multi: bool, number: int
) -> None:
    write_launch_config(ACCELERATE / f"{kind}.yaml", ranks, tmp_path / "copy.yaml")
    named = ["--config_file", str(tmp_path / "copy.yaml"), "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(named))
    shared = arguments.use_fsdp if kind == "fsdp" else arguments.multi_gpu
    assert (shared, arguments.num_processes) == (multi, number)


@pytest.mark.parametrize(
    ("global_batch", "batch", "number", "expected"), [(8, 8, 1, 1), (8, 2, 1, 4), (8, 2, 2, 2), (32, 2, 16, 1)]
)
def test_processes_share_the_examples_of_a_step(global_batch: int, batch: int, number: int, expected: int) -> None:
    settings = FinetuneConfig(global_batch=global_batch, per_device_train_batch_size=batch)
    assert accumulated_batches(settings, number) == expected


@pytest.mark.parametrize(
    ("global_batch", "batch", "number", "message"),
    [
        (
            10,
            2,
            2,
            r"= 10 is no multiple of 2 processes x finetune\.per_device_train_batch_size = 2: set "
            r"finetune\.global_batch to 8 or 12, or finetune\.per_device_train_batch_size to 1$",
        ),
        (8, 8, 2, r"2 processes x .* = 8: set finetune\.global_batch to 16, or finetune\.per_device_\S+ to 4$"),
        (8, 3, 1, r"1 process x .* = 3: set finetune\.global_batch to 6 or 9, or finetune\.per_device_\S+ to 2$"),
        (8, 1, 3, r"3 processes x .* = 1: set finetune\.global_batch to 6 or 9$"),
    ],
)
def test_a_step_that_cannot_be_shared_is_refused_with_the_nearest_numbers(
    global_batch: int, batch: int, number: int, message: str
) -> None:
    settings = FinetuneConfig(global_batch=global_batch, per_device_train_batch_size=batch)
    with pytest.raises(ConfigError, match=message):
        accumulated_batches(settings, number)


def test_before_a_run_only_what_no_machine_can_train_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 0)
    settings = FinetuneConfig(accelerate_config=str(write(tmp_path / "16.yaml", num_processes=16)), global_batch=32)
    check_ranks(settings.model_copy(update={"per_device_train_batch_size": 2}))
    with pytest.raises(ConfigError, match="16 processes x"):
        check_ranks(settings)
    auto = settings.model_copy(update={"accelerate_config": str(ACCELERATE / "ddp.yaml")})
    check_ranks(auto)
    with pytest.raises(ConfigError, match="1 process x"):
        check_ranks(auto.model_copy(update={"per_device_train_batch_size": 5}))


def test_the_number_of_processes_counts_for_no_fingerprint_and_other_settings_do(tmp_path: Path) -> None:
    auto, two = write(tmp_path / "a.yaml"), write(tmp_path / "b.yaml", num_processes=2)
    two.write_text("# a comment\n" + two.read_text())
    assert settings_sha256(auto) == settings_sha256(two)
    assert settings_sha256(auto) != settings_sha256(write(tmp_path / "c.yaml", mixed_precision="bf16"))


MEETING = {"num_machines": 2, "main_process_ip": "10.0.0.1", "main_process_port": 29500}


def test_processes_of_all_machines_count_together_and_each_machine_has_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, 4)
    ranks = read_ranks(write(tmp_path / "eight.yaml", num_processes=8, **MEETING))
    assert (ranks.number, ranks.here) == (8, 4)
    with pytest.raises(
        ConfigError, match=r"num_processes = 10 on 2 machines, and 4 GPUs in sight; set it to auto or to 8"
    ):
        read_ranks(write(tmp_path / "ten.yaml", num_processes=10, **MEETING))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distributed_type": "FSDP"}, "distributed_type = FSDP for 2 machines; set it to MULTI_GPU"),
        ({"main_process_ip": None}, "main_process_ip = None for 2 machines; set it to an address of machine 0"),
        ({"main_process_port": 0}, "main_process_port = 0 for 2 machines; set it to a free port of machine 0"),
        ({"rdzv_backend": "c10d"}, "rdzv_backend = c10d for 2 machines; set it to static"),
        ({"num_processes": 3}, "num_processes = 3 for 2 machines; set it to auto, or a multiple of 2"),
    ],
    ids=str,
)
def test_machines_that_would_not_meet_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_ranks(write(tmp_path / "two.yaml", **{**MEETING, "use_cpu": True, **change}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_a_machine_that_the_file_counts_can_join(tmp_path: Path) -> None:
    two = FinetuneConfig(accelerate_config=str(write(tmp_path / "two.yaml", **MEETING)))
    require_machine(two, 1)
    with pytest.raises(ConfigError, match=r"machine 2 cannot join: .* has 2 machines, of which 1 to 1 join"):
        require_machine(two, 2)
    with pytest.raises(ConfigError, match="has 1 machine, of which none join"):
        require_machine(FinetuneConfig(accelerate_config=str(ACCELERATE / "ddp.yaml")), 1)


def test_accelerate_starts_a_machines_share_at_the_place_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "two.yaml", **MEETING)
    write_launch_config(file, Ranks(8, False, False, 2), tmp_path / "copy.yaml", machine=1)
    arguments, _, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(tmp_path / "copy.yaml"), "script.py"])
    )
    prepare_multi_gpu_env(arguments)
    assert (arguments.nproc_per_node, arguments.nnodes, arguments.node_rank) == ("4", "2", 1)
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("static", "10.0.0.1:29500")


def test_a_plan_counts_no_gpu_and_imports_no_torch() -> None:
    script = (
        "import sys; from tripletune.config import FinetuneConfig; from tripletune.finetune import ranks; "
        f"ranks.check_ranks(FinetuneConfig(accelerate_config={str(ACCELERATE / 'ddp.yaml')!r})); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
