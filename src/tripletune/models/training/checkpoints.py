"""Checkpoints to resume a killed training from: one safetensors file per fit with all that its next step depends on.

The file lies in the stage's work folder, which belongs to one fingerprint, so settings, seed, source and input are the
same on resuming. A resumed training writes the same bytes as one that was never killed.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tripletune.models.training.interactions import Batches
from tripletune.store.files import write_atomically
from tripletune.store.paths import SCRATCH

MINUTES = 2.0
"""Default time between checkpoints: less than a minute of writing in an hour at 32 M ratings."""


@dataclass(slots=True)
class Checkpoints:
    """The checkpoints of one training, in the scratch folder of its work folder.

    Args:
        out: the work folder.
        minutes: least time between two checkpoints of a fit; 0: after every step.
    """

    out: Path
    minutes: float = MINUTES
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = time.monotonic()

    def load(self, fit: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the fit's last checkpoint; None when there is none."""
        path = self._path(fit)
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118

    def is_due(self) -> bool:
        """Whether the last checkpoint is old enough for the next."""
        return time.monotonic() - self._last >= 60 * self.minutes

    def save(self, fit: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the fit's checkpoint, tensors and facts at once."""
        self._path(fit).parent.mkdir(parents=True, exist_ok=True)
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write = functools.partial(save_file, held, metadata={"facts": json.dumps(facts)})
        write_atomically(self._path(fit), write)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Delete all checkpoints, once the training's files are written."""
        shutil.rmtree(self.out / SCRATCH, ignore_errors=True)

    def _path(self, fit: str) -> Path:
        return self.out / SCRATCH / f"fit_{fit}.safetensors"


def training_state(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    batches: Batches,
) -> dict[str, Tensor]:
    """State of a training: parameters, optimiser, random generator, and the place in the pass over users.

    The tensors of parameters and optimiser are the live ones, not copies.
    """
    state: dict[str, Tensor] = {f"parameter.{name}": parameter.detach() for name, parameter in parameters.items()}
    for number, entry in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": value for name, value in entry.items()}
    return state | {"generator": generator.get_state(), "batches": batches.state()}


@torch.no_grad()
def load_training_state(
    state: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    batches: Batches,
) -> None:
    """Restore a state made by ``training_state``."""
    for name, parameter in parameters.items():
        parameter.copy_(state[f"parameter.{name}"])
    entries: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, value in state.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            entries[int(number)][name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": dict(entries), "param_groups": groups})
    generator.set_state(state["generator"])
    batches.load_state(state["batches"])
