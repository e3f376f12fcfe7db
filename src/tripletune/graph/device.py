"""Where a specialist trains."""

from __future__ import annotations

from typing import Literal

import torch

from tripletune.errors import ConfigError


def choose_device(setting: Literal["auto", "cpu", "cuda"], name: str) -> torch.device:
    """The device of a setting; ``name`` is what the setting is called in an error.

    Raises:
        ConfigError: it names a GPU and torch sees none.
    """
    has_gpu = torch.cuda.is_available()
    if setting == "cuda" and not has_gpu:
        raise ConfigError(f"{name} = 'cuda', but torch sees no GPU here; set 'auto' or 'cpu'")
    return torch.device("cuda" if has_gpu and setting != "cpu" else "cpu")
