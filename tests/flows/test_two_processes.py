"""Two training processes on the CPU: accelerate starts one without a word when its config file is not just so."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.finetune_shards import PROMPT_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.live_log import OnLog
from tripletune.store.paths import SCRATCH

ACCELERATE = Path(__file__).parents[2] / "configs" / "accelerate"
STEPS = 12


def tune(
    folder: Path, out: str, config: str, batch: int, on_log: OnLog | None = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Facts and weights of a training by the processes of a file, eight examples a step."""
    shutil.copyfile(ACCELERATE / config, folder / "mine.yaml")
    changes = {
        "accelerate_config": str(folder / "mine.yaml"),
        "global_batch": 8,
        "per_device_train_batch_size": batch,
        "save_steps": 5,
    }
    (folder / out).mkdir(exist_ok=True)
    settings = SETTINGS.model_copy(update=changes)
    facts = finetune_adapter(folder / "shards", folder / out, settings, PROMPT_CONTRACT, {}, 0, on_log)
    return facts, load_file(folder / out / "adapter" / "adapter_model.safetensors")


def require_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    for name, tensor in theirs.items():
        # weights up to 0.3 after 12 steps of sums in another order; a wrong share of the gradient moves them by 1e-2
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # its two processes and those of other tests share two cores: it took its limit of three minutes
def test_two_processes_learn_what_one_learns_from_steps_of_the_same_size(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", train=24, valid=8, test=1, long=False)
    logged: list[Mapping[str, float]] = []
    one, weights = tune(tmp_path, "one", "single.yaml", 4, lambda _, metrics: logged.append(metrics))
    two, theirs = tune(tmp_path, "two", "cpu-2.yaml", 2, lambda _, metrics: logged.append(metrics))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["steps"] == two["steps"] == STEPS
    assert one["tokens_trained"] == two["tokens_trained"] == one["tokens"]
    rates = [(line["tokens_per_second"], line["tokens_per_second_per_gpu"]) for line in logged if "loss" in line]
    assert [round(both / each, 6) for both, each in rates] == [1.0, 1.0, 2.0, 2.0]
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-5)
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
    require_close(theirs, weights)

    scratch = tmp_path / "two" / SCRATCH  # as if it had been stopped after ten steps
    (scratch / "result.json").unlink()
    shutil.rmtree(tmp_path / "two" / "adapter")
    shutil.rmtree(scratch / "checkpoints" / f"checkpoint-{STEPS}")
    again, resumed = tune(tmp_path, "two", "single.yaml", 2)
    assert (again["world_size"], again["resumed_from_step"], again["steps"]) == (1, 10, STEPS)
    require_close(resumed, weights)
