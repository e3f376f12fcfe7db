"""An adapter on the tiny Llama, written without a training: its weights are random."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tripletune.config import TinyLlamaConfig
from tripletune.contract import AdapterContract, Residual, identify_base, write_contract
from tripletune.finetune.tiny import write_tiny_llama

SHAPE = TinyLlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=48, num_layers=1, num_heads=2, num_kv_heads=1)
LORA_ALPHA, LORA_R = 8, 4


def write_adapter(
    folder: Path, shards: Path, prompts: Mapping[str, Any], *, seed: int = 2, residual: Residual | None = None
) -> Path:
    """A finetuned folder: ``base/``, ``adapter/`` and ``contract.json``; returns the folder."""
    write_tiny_llama(sorted((shards / "train").glob("*.parquet")), folder / "base", SHAPE, seed=seed)
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    torch.manual_seed(seed)
    lora = LoraConfig(
        r=LORA_R, lora_alpha=LORA_ALPHA, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    tuned = get_peft_model(model, lora)
    tuned.peft_config["default"].base_model_name_or_path = "tiny"  # and no path of this test's
    tuned.save_pretrained(folder / "adapter", save_embedding_layers=False)
    base = identify_base(str(folder / "base"), "")
    contract = AdapterContract(
        prompt=dict(prompts),
        tokenizer_sha256=base.tokenizer_sha256,
        base_model="tiny",
        base_revision=base.revision,
        objective="listwise",
        residual=residual,
    )
    write_contract(folder, contract)
    return folder
