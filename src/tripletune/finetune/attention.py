"""Attention implementation of a training, by what the machine has."""

from __future__ import annotations

import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from tripletune.errors import TrainingError

_HOPPER = (9, 0)
"""Compute capability that FlashAttention 3 is written for."""


def choose_attention(setting: str, dtype: str) -> str:
    """Name for transformers' ``attn_implementation``.

    Args:
        setting: ``finetune.attention``; ``auto`` takes FlashAttention where its package is installed and the weights
            are 16-bit numbers on a GPU, 3 on Hopper before 2, else PyTorch's own ``sdpa``.
        dtype: of the weights, of torch's names.

    Raises:
        TrainingError: an implementation is asked for by name where it cannot train.
    """
    has_gpu = torch.cuda.is_available()
    on_gpu = has_gpu and dtype != "float32"
    if setting == "flex_attention" and not has_gpu:
        raise TrainingError(
            "finetune.attention = 'flex_attention' has no gradients on the CPU; set finetune.attention to 'sdpa'"
        )
    runs = {
        "flash_attention_3": on_gpu and is_flash_attn_3_available() and torch.cuda.get_device_capability() == _HOPPER,
        "flash_attention_2": on_gpu and is_flash_attn_2_available(),
    }
    if setting == "auto":
        return next((name for name, usable in runs.items() if usable), "sdpa")
    if not runs.get(setting, True):
        package = "flash-attn" if setting == "flash_attention_2" else "flash_attn_interface, and a Hopper GPU"
        raise TrainingError(
            f"finetune.attention = {setting!r} needs a GPU that computes in bfloat16 and the package {package}; "
            "install it, or set finetune.attention to 'auto'"
        )
    return setting
