"""``[finetune.trainer]``: what reaches TRL's SFTConfig, and what is refused in one line before anything trains."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from trl import SFTConfig

from tripletune.cli.main import main
from tripletune.config import FinetuneConfig
from tripletune.config.presets import load_config
from tripletune.errors import ConfigError, TrainingError
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.trainer_settings import _FIXED, _OURS, check_trainer_settings
from tripletune.finetune.training import _arguments, _own_arguments
from tripletune.pipeline.resolve import resolve

FIELDS = {field.name for field in dataclasses.fields(SFTConfig)}
PRESET = """
dataset = "small"
[finetune.trainer]
lr_scheduler_type = "linear"
weight_decay = 0.01
max_grad_norm = 0.5
optim = "adamw_torch"
label_smoothing_factor = 0
lr_scheduler_kwargs = { }
optim_target_modules = ["q_proj"]
"""


def arguments(folder: Path, trainer: dict[str, Any]) -> SFTConfig:
    settings = FinetuneConfig.model_validate({"trainer": trainer})
    job = TrainingJob(
        out=folder, train=(), evaluation=None, base="b", hub_revision=None, base_name="tiny", settings=settings, seed=5
    )
    # as the rank reads it
    job = TrainingJob.model_validate_json(job.model_dump_json())
    return _arguments(job, True, evaluate=True, from_start=True)


def test_settings_arrive_at_sftconfig_with_their_values_and_types(tmp_path: Path) -> None:
    trainer = tomllib.loads(PRESET)["finetune"]["trainer"]
    check_trainer_settings(trainer)
    got = arguments(tmp_path, trainer)
    assert got.lr_scheduler_type == "linear"
    assert (got.weight_decay, got.max_grad_norm, got.optim) == (0.01, 0.5, "adamw_torch")
    assert got.optim_target_modules == ["q_proj"]
    assert got.seed == got.data_seed == 5


def test_without_the_table_the_trainer_is_set_as_before(tmp_path: Path) -> None:
    got = arguments(tmp_path, {})
    assert got.lr_scheduler_type == "cosine"
    assert got.weight_decay == 0.0
    assert got.completion_only_loss
    assert not got.packing
    # a log of a run, not a terminal
    assert got.disable_tqdm
    assert got.report_to == []


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"weight_decai": 0.1}, r"unknown key 'weight_decai' in \[finetune\.trainer\].*did you mean weight_decay\?"),
        ({"lr_scheduler": "cosine"}, r"unknown key 'lr_scheduler'.*did you mean .*lr_scheduler_type"),
        ({"no_such_thing_at_all": 1}, r"unknown key 'no_such_thing_at_all'"),
        ({"seed": 3}, r"seed cannot be set here; set the run's seed"),
        ({"data_seed": 3}, r"data_seed cannot be set here; set the run's seed"),
        ({"learning_rate": 0.1}, r"set finetune\.learning_rate"),
        ({"max_length": 100}, r"set finetune\.max_length"),
        ({"warmup_steps": 10}, r"set finetune\.warmup_ratio"),
        ({"max_steps": 10}, r"set finetune\.num_train_epochs"),
        ({"report_to": "wandb"}, r"report_to cannot be set: the curve is logged to the run in MLflow"),
        ({"output_dir": "/tmp/x"}, r"output_dir cannot be set: .*the run's own folder"),
        ({"completion_only_loss": False}, r"completion_only_loss cannot be set: the loss is taken over the completion"),
        ({"packing": True}, r"packing cannot be set: nothing is packed"),
        ({"logging_nan_inf_filter": True}, r"logging_nan_inf_filter cannot be set"),
        ({"weight_decay": "0.1"}, r"finetune\.trainer\.weight_decay = '0\.1': SFTConfig takes a number there"),
        ({"weight_decay": True}, r"weight_decay = True: SFTConfig takes a number"),
        ({"weight_decay": float("nan")}, r"weight_decay = nan: must be a finite number"),
        ({"lr_scheduler_kwargs": {"x": [float("inf")]}}, r"must be a finite number"),
        ({"logging_first_step": 1}, r"logging_first_step = 1: SFTConfig takes true or false there"),
        ({"torch_empty_cache_steps": 1.5}, r"takes a whole number there"),
        ({"lr_scheduler_kwargs": [1]}, r"takes a table or a text there"),
        ({"optim_target_modules": ["a", 1]}, r"takes a text or a list there"),
        ({"lr_scheduler_type": "cosinus"}, r"lr_scheduler_type = 'cosinus': no such choice; did you mean cosine"),
        ({"loss_type": "zzz"}, r"loss_type = 'zzz': no such choice; there are nll, "),
    ],
)
def test_a_setting_that_cannot_be_handed_on_is_refused_in_one_line(trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check_trainer_settings(trainer)
    assert "\n" not in str(caught.value)


def test_everything_that_the_project_sets_is_refused_or_a_mere_default() -> None:
    """A new argument of ours must be thought of: may a user replace it?"""
    defaults = {"lr_scheduler_type", "per_device_eval_batch_size", "dataloader_num_workers", "dataloader_pin_memory"}
    defaults |= {"gradient_checkpointing_kwargs", "ddp_find_unused_parameters"}
    job = TrainingJob(
        out=Path(), train=(), evaluation=None, base="b", hub_revision=None, base_name="tiny", settings=FinetuneConfig(),
        seed=5,
    )  # fmt: skip
    ours = _own_arguments(job, True, evaluate=True, from_start=True).keys()
    assert ours <= FIELDS
    refused = set()
    for name in ours:
        try:
            check_trainer_settings({name: _own_arguments(job, True, evaluate=True, from_start=True)[name]})
        except ConfigError:
            refused.add(name)
    assert ours - refused == defaults


def test_what_is_refused_are_fields_of_this_sftconfig() -> None:
    assert _OURS.keys() | _FIXED.keys() <= FIELDS
    assert not _OURS.keys() & _FIXED.keys()


def test_the_command_line_refuses_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    preset = tmp_path / "wrong.toml"
    preset.write_text('dataset = "small"\n[finetune.trainer]\nweight_decai = 0.1\n')
    for command in ("plan", "run", "ingest"):
        code = main([command, "--config", str(preset), "--artifacts", str(tmp_path / "artifacts")])
        assert code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "did you mean weight_decay?" in line
    assert not (tmp_path / "artifacts").exists()


@pytest.mark.parametrize("text", ["trainer = 3", "trainer = { weight_decay = 2017-01-01 }"])
def test_what_is_no_table_of_plain_values_is_refused_by_the_config(tmp_path: Path, text: str) -> None:
    preset = tmp_path / "wrong.toml"
    preset.write_text(f'dataset = "small"\n[finetune]\n{text}\n')
    with pytest.raises(ConfigError, match=r"finetune\.trainer") as caught:
        load_config(preset)
    assert "\n" not in str(caught.value)


def test_the_stage_itself_refuses_too(tmp_path: Path) -> None:
    settings = FinetuneConfig.model_validate({"trainer": {"seed": 3}})
    with pytest.raises(ConfigError, match="the run's seed"):
        finetune_adapter(tmp_path, tmp_path / "out", settings, {}, {}, 0, None)


def test_what_sftconfig_itself_refuses_is_one_line_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"\[finetune\.trainer\] is refused by SFTConfig: Expecting property name"):
        arguments(tmp_path, {"lr_scheduler_kwargs": "{no json"})


def test_the_table_counts_in_the_fingerprint_of_finetune_and_of_no_stage_before_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    preset = tmp_path / "a.toml"
    prints = []
    for value in ("0.01", "0.02"):
        preset.write_text(
            f'dataset = "small"\n[finetune]\naccelerate_config = "{root}/configs/accelerate/single.yaml"\n'
            f"[finetune.trainer]\nweight_decay = {value}\n"
        )
        prints.append(resolve(load_config(preset), tmp_path / "artifacts").fingerprints)
    changed = {stage for stage in prints[0] if prints[0][stage] != prints[1][stage]}
    assert changed == {"finetune", "rank", "evaluate"}


def test_a_config_without_the_table_imports_no_trl(tmp_path: Path) -> None:
    preset = tmp_path / "a.toml"
    preset.write_text('dataset = "small"\n')
    script = (
        "import sys; from tripletune.cli.main import main; "
        f"main(['plan', '--config', {str(preset)!r}, '--artifacts', {str(tmp_path / 'a')!r}]); "
        "assert not {'trl', 'transformers', 'torch'} & set(sys.modules), 'slow'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
