"""Two training processes on the CPU: accelerate starts one without a word when its config file is not just so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.finetune_shards import PROMPT_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS
from tripletune.finetune.launch import finetune_adapter

ACCELERATE = Path(__file__).parents[2] / "configs" / "accelerate"


def test_two_processes_learn_what_one_learns_from_batches_of_twice_the_size(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", train=24, valid=8, test=1, long=False)
    adapters, facts = [], []
    logged: list[Mapping[str, float]] = []
    for config, batch in (("single.yaml", 8), ("cpu-2.yaml", 4)):
        out = tmp_path / config
        out.mkdir()
        settings = SETTINGS.model_copy(
            update={"accelerate_config": str(ACCELERATE / config), "per_device_train_batch_size": batch}
        )
        facts.append(finetune_adapter(shards, out, settings, PROMPT_CONTRACT, {}, 0, lambda _, m: logged.append(m)))
        adapters.append(load_file(out / "adapter" / "adapter_model.safetensors"))
    one, two = facts
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["steps"] == two["steps"] == 12
    assert one["tokens_trained"] == two["tokens_trained"] == one["tokens"]
    rates = [(line["tokens_per_second"], line["tokens_per_second_per_gpu"]) for line in logged if "loss" in line]
    assert [round(both / each, 6) for both, each in rates] == [1.0, 1.0, 2.0, 2.0]
    # the evaluation loss is a mean over batches, so it alone depends on their size
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
    for name, tensor in adapters[0].items():
        # weights up to 0.3 after 12 steps of sums in another order; a wrong share of the gradient moves them by 1e-2
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-5, atol=1e-6)
