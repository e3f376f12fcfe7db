"""Weights that a training starts from: those of an earlier adapter in place of fresh LoRA matrices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file

from tripletune.errors import TrainingError


def load_start(model: Any, adapter: Path) -> None:
    """Give a PEFT model an earlier adapter's weights: its LoRA matrices, and its projector of behaviour tokens.

    Args:
        model: with fresh weights, not yet shared between processes; all of them call it.
        adapter: folder that ``save_pretrained`` wrote, of the same shapes.

    Raises:
        TrainingError: the adapter has other weights than the model trains.
    """
    weights = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
    found = set_peft_model_state_dict(model, weights)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    missing = sorted(trained & set(found.missing_keys))
    if missing or found.unexpected_keys:
        first = (missing or found.unexpected_keys)[0]
        raise TrainingError(
            f"{adapter} has other weights than this training, first {first}; set finetune.start to 'base'"
        )
