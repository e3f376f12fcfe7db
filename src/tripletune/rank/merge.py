"""A base model's weights, and an adapter merged into them: the tuned model, for ranking and for export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from tripletune.contract import AdapterContract, BaseIdentity
from tripletune.errors import NonFiniteError
from tripletune.quantization import dequantized, load_causal_lm

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def load_base(base: BaseIdentity, contract: AdapterContract) -> Any:
    """The base model that the adapter was trained on, with full weights in the contract's number format.

    Where training had them in 4 bits they are the values of those, not the original ones: the adapter has learned on
    them, and can be merged without rounding to 4 bits again.
    """
    return dequantized(load_causal_lm(base.source, base.hub_revision, contract.dtype, contract.quantization))


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
