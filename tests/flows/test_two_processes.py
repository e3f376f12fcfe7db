"""Two training processes on the CPU: accelerate starts one without a word when its config file is not just so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.finetune_shards import PROMPT_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS
from tripletune.finetune.launch import finetune_adapter

ACCELERATE = Path(__file__).parents[2] / "configs" / "accelerate"


def test_two_processes_learn_what_one_learns_from_steps_of_the_same_size(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", train=24, valid=8, test=1, long=False)
    adapters, facts = [], []
    for config, batch in (("single.yaml", 4), ("cpu-2.yaml", 2)):
        out = tmp_path / config
        out.mkdir()
        settings = SETTINGS.model_copy(
            update={
                "accelerate_config": str(ACCELERATE / config),
                "global_batch": 8,
                "per_device_train_batch_size": batch,
            }
        )
        facts.append(finetune_adapter(shards, out, settings, PROMPT_CONTRACT, {}, 0, None))
        adapters.append(load_file(out / "adapter" / "adapter_model.safetensors"))
    one, two = facts
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["steps"] == two["steps"] == 12
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-5)
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
    for name, tensor in adapters[0].items():
        # weights up to 0.3 after 12 steps of sums in another order; a wrong share of the gradient moves them by 1e-2
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-5, atol=1e-6)
