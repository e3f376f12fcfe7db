"""Where a training step's time goes: its passes as they run, and its kinds of products each alone at the same size.

What the parts leave of the whole step is norms, rotations, activation functions, residual sums, copies between number
formats and the start of kernels.
"""

# Shape letters in this file: B examples, L tokens, M = B * L, D width of a head
from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from llm_training import clock
from peft import get_peft_model
from session import time_rounds
from speed_kit import autocast, config_of, random_model, release, weights_dtype
from speed_training import (
    Setup,
    Variant,
    build_model,
    collate,
    draw_rows,
    lora,
    loss_of,
    make_optimizer,
    prepare_head,
    update,
)
from torch import nn
from torch.nn import functional

from tripletune.estimate.model_size import Linear, ModelSize, size_of

ROUNDS, WARM_UPS = 5, 2


def time_parts(variant: Variant, setup: Setup) -> dict[str, float]:
    """Seconds of a step of the path ``ours`` and of its parts, without gradient checkpointing.

    Returns:
        ``forward``, ``backward`` and ``optimizer`` of a whole step; ``products``, the layers' frozen linear maps and
        the gradients of their inputs; ``lora``, what the adapter adds to them, its dropout and copies included;
        ``attention``; ``head``, from the embeddings to the loss without any layer.
    """
    found = _time_passes(variant, setup)
    release(setup.device)
    config = config_of(setup.shape)
    size = size_of(config.to_dict())
    tokens = variant.batch * setup.length
    found["products"] = sum(one.count * _time_product(one, tokens, setup) for one in size.linears)
    adapted = sum(one.count * _time_adapted(one, tokens, variant, setup) for one in size.linears)
    found["lora"] = adapted - found["products"]
    found["attention"] = size.layers * _time_attention(size, variant, setup)
    found["head"] = _time_head(variant, setup)
    return found


def _time_passes(variant: Variant, setup: Setup) -> dict[str, float]:
    model, batch = build_model(variant, setup), _batch(variant, setup)
    optimizer, taken = make_optimizer(model), {"forward": [], "backward": [], "optimizer": []}
    for _ in range(WARM_UPS + setup.steps):
        marks = [clock(setup.device)]
        with autocast(setup.device):
            loss = loss_of(model, batch, variant)
        marks.append(clock(setup.device))
        loss.backward()
        marks.append(clock(setup.device))
        update(optimizer)
        marks.append(clock(setup.device))
        for name, start, end in zip(taken, marks, marks[1:], strict=False):
            taken[name].append(end - start)
    return {name: statistics.median(seconds[WARM_UPS:]) for name, seconds in taken.items()}


def _batch(variant: Variant, setup: Setup) -> dict[str, torch.Tensor]:
    rows = draw_rows(variant, setup)[: variant.batch]
    return {name: values.to(setup.device) for name, values in collate(rows, variant).items()}


def _median(work: Callable[[], Any], setup: Setup) -> float:
    return statistics.median(time_rounds(work, setup.device, ROUNDS, WARM_UPS))


def _drawn(setup: Setup, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=setup.device, dtype=weights_dtype(setup.device))


def _time_product(linear: Linear, tokens: int, setup: Setup) -> float:
    """One frozen map: its output, and the gradient of its input."""
    weight = _drawn(setup, linear.outputs, linear.inputs)
    inputs_M, gradient_M = _drawn(setup, tokens, linear.inputs), _drawn(setup, tokens, linear.outputs)

    def work() -> None:
        torch.mm(inputs_M, weight.t())
        torch.mm(gradient_M, weight)

    return _median(work, setup)


def _time_adapted(linear: Linear, tokens: int, variant: Variant, setup: Setup) -> float:
    """One map with its LoRA matrices, forward and backward."""
    bare = nn.Linear(linear.inputs, linear.outputs, bias=False, device=setup.device, dtype=weights_dtype(setup.device))
    settings = lora(variant)
    settings.target_modules, settings.task_type = {"one"}, None
    wrapped = get_peft_model(
        nn.ModuleDict({"one": bare}), settings, autocast_adapter_dtype=variant.adapter == "float32"
    )
    adapted = wrapped.get_base_model()["one"].train()
    inputs_M = _drawn(setup, tokens, linear.inputs).requires_grad_()
    gradient_M = _drawn(setup, tokens, linear.outputs)

    def work() -> None:
        with autocast(setup.device):
            outputs_M = adapted(inputs_M)
        outputs_M.backward(gradient_M)
        wrapped.zero_grad()
        inputs_M.grad = None

    return _median(work, setup)


def _time_attention(size: ModelSize, variant: Variant, setup: Setup) -> float:
    """Attention of one layer by torch's own kernel, forward and backward."""
    width = size.attention_width // size.heads
    shape = variant.batch, setup.length, width
    query_BLD = _drawn(setup, shape[0], size.heads, *shape[1:]).requires_grad_()
    key_BLD, value_BLD = (
        _drawn(setup, shape[0], size.key_width // width, *shape[1:]).requires_grad_() for _ in range(2)
    )
    gradient_BLD = torch.randn_like(query_BLD)

    def work() -> None:
        out_BLD = functional.scaled_dot_product_attention(
            query_BLD, key_BLD, value_BLD, is_causal=True, enable_gqa=True
        )
        torch.autograd.grad(out_BLD, (query_BLD, key_BLD, value_BLD), gradient_BLD)

    return _median(work, setup)


def _time_head(variant: Variant, setup: Setup) -> float:
    """Embeddings, last norm, head and loss, forward and backward to the hidden states."""
    config = config_of(setup.shape)
    config.num_hidden_layers = 0
    model = random_model(config, setup.device).requires_grad_(False)
    prepare_head(model, variant)
    model.enable_input_require_grads()
    batch = _batch(variant, setup)

    def work() -> None:
        with autocast(setup.device):
            loss = loss_of(model, batch, variant)
        loss.backward()

    return _median(work, setup)
