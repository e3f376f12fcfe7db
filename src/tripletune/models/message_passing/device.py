"""Choice of the device that a specialist trains on, and what the processor can do."""

from __future__ import annotations

from typing import Literal

import torch

from tripletune.errors import ConfigError

HAS_AVX2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
"""Whether the processor has AVX2, and torch may use it (``ATEN_CPU_CAPABILITY``)."""


def choose_device(
    setting: Literal["auto", "cpu", "cuda"], backend: Literal["auto", "dgl", "torch"], section: str
) -> torch.device:
    """The device of a section's setting; DGL is for the CPU, so ``auto`` with it is the CPU.

    Raises:
        ConfigError: the setting names a GPU, and torch finds none or the back end is DGL.
    """
    name, has_gpu = f"{section}.device", torch.cuda.is_available() and backend != "dgl"
    if setting == "cuda" and backend == "dgl":
        raise ConfigError(
            f"{name} = 'cuda' needs {section}.message_passing = 'torch' or 'auto'; DGL here is for the CPU"
        )
    if setting == "cuda" and not has_gpu:
        raise ConfigError(f"{name} = 'cuda', but torch sees no GPU here; set 'auto' or 'cpu'")
    return torch.device("cuda" if has_gpu and setting != "cpu" else "cpu")
