"""What a training will run on: memory of a rank, and how fast it computes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tripletune.errors import ConfigError
from tripletune.estimate.cards import Card, card_of
from tripletune.estimate.memory import GIB, Device
from tripletune.estimate.model_size import ModelSize

_SECONDS = 0.6
"""Of each of the three calibrations on a CPU, after a warm-up."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Measured rates of one rank on a CPU, with its share of the cores."""

    products: float
    """FLOPs a second of products as large as the model's, in the weights' number format."""
    attention: float
    """The same in float32: fused attention on a CPU gains nothing from bfloat16."""
    numbers: float
    """Numbers a second of an elementwise operation, in the weights' number format."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Ranks and what each has."""

    name: str
    device: Device
    ranks: int
    memory_bytes: float
    """Of one rank."""
    dtype: str
    peak: float | None = None
    """FLOPs a second of a rank's card; None on a CPU, whose rates are measured."""
    shares_weights: bool = False
    """Whether each rank holds a part of the weights (FSDP)."""


def gpu_machine(card: Card, ranks: int, *, shares_weights: bool = False) -> Machine:
    """Ranks with a card each."""
    dtype = "bfloat16" if card.bfloat16 else "float32"
    return Machine(card.name, "cuda", ranks, card.memory_gib * GIB, dtype, card.tflops * 1e12, shares_weights)


def this_machine(ranks: int, cpu_dtype: str, *, keep_to_cpu: bool, shares_weights: bool) -> Machine:
    """What a training here would run on.

    Args:
        ranks: processes of the training.
        cpu_dtype: number format of the weights on the CPU.
        keep_to_cpu: the accelerate config does not use GPUs.
        shares_weights: it has each hold a part of the weights.

    Raises:
        ConfigError: there are fewer GPUs than ranks, or a GPU that is not in the table.
    """
    import torch

    if keep_to_cpu or not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0))
        memory = psutil.virtual_memory().total / ranks
        return Machine(f"CPU, {cores} cores", "cpu", ranks, memory, cpu_dtype, shares_weights=shares_weights)
    found = torch.cuda.device_count()
    if ranks > found:
        raise ConfigError(
            f"{ranks} processes need a GPU each and there are {found}; set num_processes in "
            "finetune.accelerate_config, or describe another machine with --gpu"
        )
    about = torch.cuda.get_device_properties(0)
    card = card_of(about.name)
    if card is None:
        raise ConfigError(
            f"the rate of {about.name!r} is not known; give --memory-gib {about.total_memory / GIB:.0f} and --tflops "
            "(dense bfloat16, from its data sheet)"
        )
    dtype = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return Machine(about.name, "cuda", ranks, about.total_memory, dtype, card.tflops * 1e12, shares_weights)


def measure_rates(
    size: ModelSize, places: int, dtype: str, threads: int, clock: Callable[[], float] = time.perf_counter
) -> Rates:
    """Two seconds of products and sums of the model's own size, on this CPU.

    Args:
        size: of the model.
        places: of a batch, padding included.
        dtype: of the weights.
        threads: of a rank.
        clock: seconds; the process's own time next to other load, with one thread.
    """
    import torch
    from torch.nn.functional import linear

    def repeat(act: Callable[[], object]) -> float:
        """Times a second, by the median of the times, as now and then another process takes a core."""
        act()
        taken: list[float] = []
        start = clock()
        while clock() - start < _SECONDS or not taken:
            before = clock()
            act()
            taken.append(clock() - before)
        return 1 / statistics.median(taken)

    def product(kind: torch.dtype) -> float:
        x = torch.randn(places, size.hidden).to(kind)
        weight = torch.randn(size.intermediate, size.hidden).to(kind)
        return 2 * places * size.hidden * size.intermediate * repeat(lambda: linear(x, weight))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        products = product(getattr(torch, dtype))
        attention = products if dtype == "float32" else product(torch.float32)
        x = torch.randn(places, size.intermediate).to(getattr(torch, dtype))
        return Rates(products, attention, x.numel() * repeat(lambda: x * x))
    finally:
        torch.set_num_threads(before)
