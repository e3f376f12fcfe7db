"""A base model's weights, and an adapter merged into them: the tuned model, for ranking and for export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tripletune.contract import BaseIdentity
from tripletune.errors import NonFiniteError

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_base(base: BaseIdentity, dtype: str) -> Any:
    """The base model on the CPU, in a number format of torch's such as ``float32``."""
    return AutoModelForCausalLM.from_pretrained(
        base.source,
        revision=base.hub_revision,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        trust_remote_code=False,
    )


def read_adapter(adapter: Path) -> dict[str, Tensor]:
    """The weights of an adapter's folder by name, all finite.

    Raises:
        NonFiniteError: a weight is NaN or infinite.
    """
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise NonFiniteError(
                f"{adapter}: the weight {name} is NaN or infinite, so its answers mean nothing; "
                f"remove {adapter.parent} and run finetune again with a lower finetune.learning_rate"
            )
    return weights


def merge_adapter(model: Any, adapter: Path) -> Any:
    """The model with the adapter in its weights: one product for each layer, as without an adapter.

    Raises:
        NonFiniteError: a weight of the adapter is NaN or infinite.
    """
    read_adapter(adapter)
    return PeftModel.from_pretrained(model, str(adapter), is_trainable=False).merge_and_unload()
