"""Meter of a training: tokens a second, model FLOPs utilisation, peak memory and time spent waiting for batches.

Only time in which the training trains is counted: from the moment a batch is asked for to the log that closes an
interval, without evaluations, checkpoints and, after a resume, whatever came before its first batch.
"""

from __future__ import annotations

import logging
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tripletune.errors import ConfigError
from tripletune.estimate.cards import card_of
from tripletune.estimate.model_size import ModelSize, Work, size_of

_GIB = 2**30

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """What one rank did in an interval."""

    tokens: float = 0.0
    """Without padding."""
    squares: float = 0.0
    predicted: float = 0.0
    """These two: see ``Work``."""
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds of these in which the next batch was not ready."""
    cpu_seconds: float = 0.0
    peak_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a utilisation is measured against."""

    size: ModelSize | None = None
    """None: of a kind whose FLOPs are not known."""
    rank: int = 0
    """Of LoRA."""
    peak: float | None = None
    """FLOPs a second of one rank's card; None on a CPU and for a card or a number format that is not in the table."""
    recomputes: bool = False
    """Whether gradient checkpointing is on."""


class Meter:
    """Counts the batches of one rank, and makes figures of all ranks' counts.

    Args:
        hardware: of this rank.
        gather: takes this rank's row of numbers and gives those of all ranks, in every rank.
        settle: waits until the device has done what it was given; called where a clock is read that counts its work.
        peak_bytes: the largest memory of this rank since the last call.
        clock, cpu_clock: seconds of wall time, and of this process on all cores.
    """

    def __init__(
        self,
        hardware: Hardware,
        *,
        gather: Callable[[list[float]], list[list[float]]],
        settle: Callable[[], None] = lambda: None,
        peak_bytes: Callable[[], float],
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._hardware, self._gather, self._settle, self._peak_bytes = hardware, gather, settle, peak_bytes
        self._clock, self._cpu_clock = clock, cpu_clock
        self._since: tuple[float, float] | None = None
        self._is_new = True
        self._work: Tensor | None = None
        self._seconds = self._waited = self._cpu_seconds = 0.0
        self._all: list[list[Counts]] = []
        """Of each interval, the counts of every rank."""

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Give the batches on, counting each and the time that it took to come."""
        while True:
            asked = (self._clock(), self._cpu_clock())
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._take(batch, asked)
            yield batch

    def pause(self) -> None:
        """Stop the clock until the next batch is asked for."""
        if self._since is None:
            return
        self._settle()
        start, cpu_start = self._since
        self._seconds += self._clock() - start
        self._cpu_seconds += self._cpu_clock() - cpu_start
        self._since = None

    def read(self) -> dict[str, float]:
        """Close the interval; its figures, the same in every rank, each of which must call it. Empty: no batch."""
        self.pause()
        tokens, squares, predicted = (0.0, 0.0, 0.0) if self._work is None else self._work.tolist()
        mine = Counts(
            tokens, squares, predicted, self._seconds, self._waited, self._cpu_seconds, float(self._peak_bytes())
        )
        ranks = [Counts(*row) for row in self._gather([getattr(mine, one.name) for one in fields(mine)])]
        self._work, self._seconds, self._waited, self._cpu_seconds = None, 0.0, 0.0, 0.0
        if not sum(one.tokens for one in ranks):
            return {}
        self._all.append(ranks)
        return figures([ranks], self._hardware)

    def facts(self) -> dict[str, float]:
        """Totals since this process began, for the manifest; every rank must call it. Empty: it trained nothing."""
        self.read()
        if not self._all:
            return {}
        total = figures(self._all, self._hardware)
        seconds = sum(max(one.seconds for one in ranks) for ranks in self._all)
        return {
            "tokens_trained": int(sum(one.tokens for ranks in self._all for one in ranks)),
            "tokens_per_second": round(total["tokens_per_second"], 3),
            **{name: round(total[name], 4) for name in ("mfu", "hfu") if name in total},
            "peak_memory_gib": round(total["peak_memory_gib"], 3),
            "loader_wait_share": round(total["loader_wait_seconds"] / seconds, 4) if seconds else 0.0,
        }

    def _take(self, batch: Mapping[str, Tensor], asked: tuple[float, float]) -> None:
        work = count_batch(batch)
        self._work = work if self._work is None else self._work + work
        now = self._clock()
        if self._is_new:  # what came before, skipping to a checkpoint's batch included, was no training
            self._is_new, self._since = False, (now, self._cpu_clock())
            return
        self._since = self._since or asked
        self._waited += now - asked[0]


def count_batch(batch: Mapping[str, Tensor]) -> Tensor:
    """Tokens, their squares by example, and predicted places of a batch; float64, shape (3,), on the batch's device.

    A batch of an objective over labels says where each prompt ends and predicts one place of it; another has a mask of
    its tokens, and labels at the places of the completion.
    """
    if "last" in batch:
        lengths_B = batch["last"] + 1
        predicted = torch.tensor(len(lengths_B), device=lengths_B.device)
    else:
        lengths_B = batch["attention_mask"].sum(dim=1)
        predicted = (batch["labels"][:, 1:] >= 0).sum()
    lengths_B = lengths_B.double()
    return torch.stack([lengths_B.sum(), lengths_B.square().sum(), predicted.double()])


def figures(intervals: list[list[Counts]], hardware: Hardware) -> dict[str, float]:
    """Figures of some intervals.

    Tokens are summed over the ranks; the slowest rank's seconds and waiting count, as the others wait for it.

    Returns:
        ``tokens_per_second`` of all ranks, ``tokens_per_second_per_gpu`` (per rank), ``peak_memory_gib`` of the fullest
        rank, ``loader_wait_seconds``, ``cpu_cores`` (cores that all ranks kept busy); on a known card ``mfu``, and with
        gradient checkpointing ``hfu``, which counts what is computed twice.
    """
    ranks = [one for interval in intervals for one in interval]
    seconds = sum(max(one.seconds for one in interval) for interval in intervals)
    work = Work(*(sum(getattr(one, name) for one in ranks) for name in ("tokens", "squares", "predicted")))
    number = len(intervals[0])
    rate = work.tokens / seconds if seconds else 0.0
    found = {
        "tokens_per_second": rate,
        "tokens_per_second_per_gpu": rate / number,
        "peak_memory_gib": max(one.peak_bytes for one in ranks) / _GIB,
        "loader_wait_seconds": sum(max(one.waited for one in interval) for interval in intervals),
        "cpu_cores": sum(one.cpu_seconds for one in ranks) / seconds if seconds else 0.0,
    }
    if hardware.size is not None and hardware.peak and seconds:
        flops = hardware.size.training_flops(work, hardware.rank)
        available = seconds * hardware.peak * number
        found["mfu"] = flops / available
        if hardware.recomputes:
            found["hfu"] = (flops + hardware.size.recomputed_flops(work, hardware.rank)) / available
    return found


def meter_of(model: Any, accelerator: Any, *, recomputes: bool) -> Meter:
    """The meter of a Trainer's rank.

    Args:
        model: with its LoRA adapter.
        accelerator: of the Trainer.
        recomputes: whether gradient checkpointing is on.
    """
    device: torch.device = accelerator.device
    is_cuda = device.type == "cuda"

    def gather(row: list[float]) -> list[list[float]]:
        rows: list[list[float]] = accelerator.gather(torch.tensor([row], dtype=torch.float64, device=device)).tolist()
        return rows

    def cuda_peak() -> float:
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(peak)

    try:
        size = size_of(model.config.to_dict())
    except (ConfigError, KeyError) as error:
        log.info("no model FLOPs utilisation: %s", error)
        size = None
    card = card_of(torch.cuda.get_device_name(device)) if is_cuda else None
    computes = "bfloat16" if model.dtype == torch.bfloat16 else "float32"
    fits = card is not None and computes == ("bfloat16" if card.bfloat16 else "float32")
    return Meter(
        Hardware(
            size=size,
            rank=next(iter(model.peft_config.values())).r,
            peak=card.tflops * 1e12 if card is not None and fits else None,
            recomputes=recomputes,
        ),
        gather=gather,
        settle=(lambda: torch.cuda.synchronize(device)) if is_cuda else (lambda: None),
        peak_bytes=cuda_peak if is_cuda else peak_of_process,
    )


def peak_of_process() -> float:
    """Largest resident size of this process so far in bytes, loading included: a CPU's memory has no counter to reset.

    Not ``ru_maxrss`` where it can be helped: a process takes that over from the one that started it.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024.0 * int(re.findall(r"^VmHWM:\s*(\d+) kB$", text, re.MULTILINE)[0])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
