"""Put a training's estimate together: memory, time and disk of a config on a machine; refuse what cannot fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tripletune.config import FinetuneConfig
from tripletune.errors import TrainingError
from tripletune.estimate.cards import CARDS
from tripletune.estimate.machine import Machine, Rates, gpu_machine
from tripletune.estimate.memory import GIB, Batch, Holding, Memory, training_memory
from tripletune.estimate.model_size import ModelSize, Work
from tripletune.estimate.tokens import Tokens

_CHECKPOINTS = 3
"""Two are kept, and the next is written before the oldest goes."""
_TOKEN_BYTES = 4
_PASSES = 22
"""Elementwise passes over a layer's activations, forward and backward, in numbers: norms, rotations, activation
functions, sums and casts. Measured: see ``benchmarks/estimate.md``."""
_LOGIT_PASSES = 300
"""The same over the logits of ``sft``, of which TRL computes every place on a CPU, in plain torch with new arrays."""
_BATCH_SECONDS, _LAYER_SECONDS = 0.06, 0.015
"""Of a batch, and of each layer in it, whatever its size: Python, and steps of the optimiser that no product is part
of."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """All figures of a training."""

    model: str
    size: ModelSize
    trainable_parameters: int
    machine: Machine
    memory: Memory
    tokens: Tokens
    steps: int
    model_flops: float
    """Forward and backward pass of all steps, without what is computed twice."""
    training_seconds: float
    evaluation_seconds: float
    disk: Mapping[str, float]
    """Bytes by what they hold."""
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Training with its evaluations."""
        return self.training_seconds + self.evaluation_seconds

    def plain(self) -> dict[str, Any]:
        """As plain JSON data."""
        machine, tokens = self.machine, self.tokens
        return {
            "model": {
                "name": self.model,
                "parameters": self.size.parameters,
                "embedding_parameters": self.size.embedding_parameters,
                "trainable_parameters": self.trainable_parameters,
                "dtype": machine.dtype,
            },
            "machine": {
                "name": machine.name,
                "ranks": machine.ranks,
                "memory_gib_per_rank": round(machine.memory_bytes / GIB, 3),
            },
            "memory_gib_per_rank": {
                **{name: round(value / GIB, 4) for name, value in asdict(self.memory).items()},
                "total": round(self.memory.total / GIB, 3),
            },
            "tokens": {
                "examples": tokens.examples,
                "mean": round(tokens.mean, 1),
                "longest": tokens.longest,
                "predicted": round(tokens.predicted, 1),
            },
            "training": {
                "steps": self.steps,
                "model_flops": self.model_flops,
                "training_seconds": round(self.training_seconds, 1),
                "evaluation_seconds": round(self.evaluation_seconds, 1),
                "hours": round(self.seconds / 3600, 3),
            },
            "disk_gib": {
                **{name: round(value / GIB, 4) for name, value in self.disk.items()},
                "total": round(sum(self.disk.values()) / GIB, 3),
            },
            "assumptions": list(self.assumptions),
        }


def estimate(
    settings: FinetuneConfig, size: ModelSize, tokens: Tokens, machine: Machine, *, mfu: float, rates: Rates | None
) -> Estimate:
    """Estimate a training.

    Args:
        settings: the ``[finetune]`` section.
        size: of its model.
        tokens: of its examples.
        machine: what it runs on.
        mfu: share of the peak that a card reaches, products computed twice included.
        rates: of a CPU, in place of ``mfu``.

    Raises:
        TrainingError: a rank needs more memory than it has; the message says what would fit.
    """
    memory = _memory(settings, size, tokens, machine)
    if memory.total > machine.memory_bytes:
        raise TrainingError(_refuse(settings, size, tokens, machine, memory))
    steps, evaluations = count_steps(settings, tokens.examples)
    epochs = settings.num_train_epochs
    mean = settings.max_length if not tokens.mean else tokens.mean
    trained = Work.of(tokens.examples * epochs, mean, tokens.predicted)
    evaluated = Work.of(_evaluated(settings, tokens, evaluations), mean, tokens.predicted)
    recomputed = size.recomputed_flops(trained, settings.lora_r) if settings.gradient_checkpointing else 0.0
    flops = size.training_flops(trained, settings.lora_r)
    if rates is None:
        assert machine.peak is not None
        speed = machine.peak * mfu * machine.ranks
        times = ((flops + recomputed) / speed, size.forward_flops(evaluated, settings.lora_r) / speed)
    else:
        tiled = not settings.scores_labels
        passes = 4 if settings.gradient_checkpointing else 3
        batches = trained.tokens / mean / settings.per_device_train_batch_size
        computing = cpu_seconds(size, trained, settings.lora_r, rates, passes, tiled=tiled)
        times = (
            (computing + batches * (_BATCH_SECONDS + _LAYER_SECONDS * size.layers)) / machine.ranks,
            cpu_seconds(size, evaluated, settings.lora_r, rates, 1, tiled=tiled) / machine.ranks,
        )
    return Estimate(
        model=settings.model,
        size=size,
        trainable_parameters=size.lora_parameters(settings.lora_r),
        machine=machine,
        memory=memory,
        tokens=tokens,
        steps=steps,
        model_flops=flops,
        training_seconds=times[0],
        evaluation_seconds=times[1],
        disk=_disk(settings, size, tokens, machine),
        assumptions=(*tokens.assumptions, *_said(settings, machine, mfu, rates)),
    )


def cpu_seconds(size: ModelSize, work: Work, rank: int, rates: Rates, passes: int, *, tiled: bool) -> float:
    """Seconds of some examples on one rank of a CPU.

    Args:
        size, work, rank: model, tokens and rank of LoRA.
        rates: measured.
        passes: 3 for training (a backward pass counts two, of which frozen weights need one), 4 with gradient
            checkpointing, 1 for an evaluation.
        tiled: ``sft``, whose logits are computed at every place on a CPU.
    """
    attention = 4 * work.squares * size.attention_width * size.layers
    maps = 2 * work.tokens * size.linear_parameters * max(1, passes - 1)
    lora = 2 * work.tokens * size.lora_parameters(rank) * passes
    numbers = work.tokens * size.layers * (5 * size.hidden + 4 * (size.attention_width + size.intermediate))
    seconds = (maps + lora) / rates.products + attention * passes / rates.attention
    seconds += numbers * _PASSES * passes / 3 / rates.numbers
    places = work.tokens if tiled else work.predicted
    logits = places * size.vocabulary
    # training: the head once forward, once more backward, and the gradient of its input
    seconds += 2 * logits * size.hidden * min(passes, 3) / rates.products
    return seconds + (logits * _LOGIT_PASSES * min(passes, 3) / 3 / rates.numbers if tiled else 0.0)


def count_steps(settings: FinetuneConfig, examples: int) -> tuple[int, int]:
    """Optimiser steps of a training, and evaluations: before, on the way and at the end."""
    per_epoch = max(1, math.ceil(examples / settings.global_batch))
    steps = math.ceil(settings.num_train_epochs * per_epoch)
    return steps, 1 + math.ceil(steps / settings.eval_steps)


def _evaluated(settings: FinetuneConfig, tokens: Tokens, evaluations: int) -> int:
    """Examples that pass forward alone: those of every evaluation, and those that select the weight."""
    valid = math.inf if tokens.valid is None else tokens.valid
    selecting = min(valid, settings.max_select_examples) if settings.scores_labels else 0
    return int(evaluations * min(valid, settings.max_eval_examples) + selecting)


def _memory(settings: FinetuneConfig, size: ModelSize, tokens: Tokens, machine: Machine) -> Memory:
    batch = Batch(
        examples=min(settings.per_device_train_batch_size, max(1, tokens.examples)),
        tokens=tokens.longest or settings.max_length,
        predicted=math.ceil(tokens.predicted),
        tiled=not settings.scores_labels,
    )
    return training_memory(
        size,
        batch,
        rank=settings.lora_r,
        dropout=settings.lora_dropout,
        dtype=machine.dtype,
        checkpointing=settings.gradient_checkpointing,
        device=machine.device,
        holding=Holding(settings.quantization, machine.ranks if machine.shares_weights else 1),
    )


def _disk(settings: FinetuneConfig, size: ModelSize, tokens: Tokens, machine: Machine) -> dict[str, float]:
    adapter = 4.0 * size.lora_parameters(settings.lora_r)
    return {
        "base": size.parameters * (4.0 if settings.model == "tiny" else 2.0),
        "adapter": adapter,
        "checkpoints": _CHECKPOINTS * 3 * adapter,  # with AdamW's two moments
        **({"best": 2 * adapter} if settings.keep == "best" else {}),  # that of the newest checkpoint, and a newer one
        "tokens": tokens.examples * tokens.mean * _TOKEN_BYTES,
    }


def _said(settings: FinetuneConfig, machine: Machine, mfu: float, rates: Rates | None) -> list[str]:
    said = []
    if rates is None:
        said.append(f"the cards reach {mfu:.0%} of their peak (--mfu), what is computed twice included")
    else:
        said.append(f"products at {rates.products / 1e9:,.0f} GFLOP/s a rank, measured now: other load shows in it")
    if settings.quantization != "none":
        said.append("without the time in which 4-bit weights are turned back; their memory has not been measured")
    if settings.has_behaviour:
        said.append("without the projection of behaviour tokens")
    return said


def _fitting(
    tried: FinetuneConfig, settings: FinetuneConfig, size: ModelSize, tokens: Tokens, machine: Machine
) -> tuple[list[str], FinetuneConfig, float]:
    """Changes of ``settings`` that fit, with the quantization of ``tried``; the smallest training, and its bytes."""
    fits = []
    for checkpointing in dict.fromkeys((settings.gradient_checkpointing, True)):
        batch = settings.per_device_train_batch_size
        while batch:
            smaller = {"per_device_train_batch_size": batch, "gradient_checkpointing": checkpointing}
            smallest = tried.model_copy(update=smaller)
            need = _memory(smallest, size, tokens, machine).total
            if need <= machine.memory_bytes:
                names = {"per_device_train_batch_size": f"{batch}", "gradient_checkpointing": "true"}
                names["quantization"] = f"'{tried.quantization}'"
                changed = [
                    f"{name} = {value}"
                    for name, value in names.items()
                    if getattr(smallest, name) != getattr(settings, name)
                ]
                fits.append(f"finetune.{' and '.join(changed)} ({need / GIB:.1f} GiB)")
                break
            batch //= 2
    return fits, smallest, need


def _refuse(settings: FinetuneConfig, size: ModelSize, tokens: Tokens, machine: Machine, memory: Memory) -> str:
    """One line: what is needed, what there is, and each change alone, or several together, that would fit."""
    now = settings.per_device_train_batch_size
    for quantization in dict.fromkeys((settings.quantization, "nf4")):  # nothing is rounded where less does
        tried = settings.model_copy(update={"quantization": quantization})
        fits, smallest, need = _fitting(tried, settings, size, tokens, machine)
        if fits:
            break
    head = (
        f"finetune.model = {settings.model!r} needs {memory.total / GIB:.1f} GiB of memory a process to train with "
        f"{now} x {tokens.longest:,} tokens, and {machine.name} has {machine.memory_bytes / GIB:.1f} GiB for it; "
    )
    if fits:
        return head + "set " + ", or ".join(fits)
    least = need / GIB
    if machine.device == "cpu":
        return head + f"even the smallest batch needs {least:.1f} GiB: use fewer processes or a smaller finetune.model"
    other_cards = [gpu_machine(card, 1) for card in CARDS]
    larger = [one.name for one in other_cards if _memory(smallest, size, tokens, one).total <= one.memory_bytes]
    return head + (
        f"even the smallest batch with gradient checkpointing and weights in NF4 needs {least:.1f} GiB: "
        + (f"use {', '.join(larger)}, or " if larger else "no known card holds it: ")
        + "use a smaller finetune.model"
        + (", or more GPUs" if machine.shares_weights else ", or share the weights: configs/accelerate/fsdp.yaml")
    )
