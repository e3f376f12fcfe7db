"""Weights that processes share (FSDP2): seen whole, and on the CPU as on GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def shares_weights() -> bool:
    """Whether the accelerate config asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def share_on_cpu() -> None:
    """Let accelerate shard on the CPU as it does on GPUs; after the Trainer's arguments, before its accelerator.

    accelerate takes FSDP from its config only where the kind of its processes is one of several GPUs, and copies the
    whole model without a word where they are on the CPU, although torch shards there as well (over gloo). With the
    other name it goes the way of GPUs, where it replaces the kind by FSDP; device and backend stay.
    """
    state = PartialState()
    if shares_weights() and state.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def reduce_in_float32(accelerator: Any) -> None:
    """Have gradients that are computed in 16 bits summed over the processes in 32, as without FSDP; before training."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)


def held_share(model: Any) -> float:
    """Share of the model's weights that this process holds between two steps: 1 unless processes share them."""
    _reshard(model)
    weights: list[Tensor] = list(model.parameters())
    return sum(held(weight).numel() for weight in weights) / sum(weight.numel() for weight in weights)


def _reshard(model: Any) -> None:
    """Let go of weights that an evaluation left gathered: their memory is FSDP's, not theirs."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(weight: Tensor) -> Tensor:
    """A weight's values, of which this process may hold a part; every process must call it, in the same order."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def held(weight: Tensor) -> Tensor:
    """The values that this process holds, which may be none."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def trained_weights(model: Any) -> dict[str, Tensor]:
    """The weights that are trained, whole, by name; every process must call it."""
    _reshard(model)
    return {name: whole(weight.detach()) for name, weight in model.named_parameters() if weight.requires_grad}


def give_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Set the weights that are trained to those of ``trained_weights``; every process must call it."""
    _reshard(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                value = weights[name].to(weight.device)
                if isinstance(weight, DTensor):
                    value = distribute_tensor(value, weight.device_mesh, weight.placements)
                weight.copy_(value)
