# Shape letters in this file: E edges
"""Choice of the message passing back end, by a rule of what is computed, its size and the device."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tripletune.models.message_passing.device import HAS_AVX2
from tripletune.models.message_passing.interface import MessageGraph

Backend = Literal["dgl", "torch"]
Kernel = Literal["sum", "weighted sum", "attention"]
"""What a model's steps are made of: plain sums, sums with a weight per edge, or softmax and sums by head."""

SUM_VALUES = 1 << 27
"""Edges times width up to which plain sums are DGL's: they take about twice torch's time at every size, and up to here
a training step at default settings takes at most 1.5 times as long. 2 M likes at width 64."""


class Choice(NamedTuple):
    """A back end, and why it was chosen."""

    backend: Backend
    reason: str

    def facts(self) -> dict[str, str]:
        """For the manifest."""
        return {"message_passing": self.backend, "message_passing_reason": self.reason}


def choose_backend(
    setting: Literal["auto", "dgl", "torch"], device: torch.device, kernel: Kernel, num_edges: int, width: int
) -> Choice:
    """The back end of a setting; ``auto`` is DGL on a CPU wherever a step stays within 1.5 times torch's time.

    Nothing is timed here, so the same graph has the same back end on every run: benchmarks/message_passing.md has
    the measurements behind the rule.

    Args:
        kernel: what the steps compute.
        num_edges, width: size of the graph, and features of a node.
    """
    if setting != "auto":
        return Choice(setting, "as configured")
    if device.type != "cpu":
        return Choice("torch", "DGL here is for the CPU")
    if kernel == "attention":
        return Choice("dgl", "as fast as torch in attention on a CPU")
    if kernel == "weighted sum":
        return Choice("torch", "DGL's weighted sums of wide features are three to six times slower")
    if not HAS_AVX2:
        return Choice("torch", "DGL's fast sums need a processor with AVX2")
    size = f"{num_edges:,} edges x {width}"
    if num_edges * width > SUM_VALUES:
        return Choice("torch", f"{size} is above {SUM_VALUES:,} values, where a step by DGL takes up to twice as long")
    return Choice("dgl", f"{size} is at most {SUM_VALUES:,} values on a CPU")


def message_graph(src_E: Tensor, dst_E: Tensor, num_src: int, num_dst: int, backend: Backend) -> MessageGraph:
    """Build the graph on the tensors' device.

    Args:
        src_E, dst_E: end points of each edge, integer, ``0 <= src < num_src`` and ``0 <= dst < num_dst``.
        num_src, num_dst: sizes of the two node sets; equal ones may mean the same nodes.
        backend: DGL's is for the CPU. The two may differ in the last bits.

    Raises:
        ValueError: the tensors differ in length or an end point is out of range.
    """
    if src_E.shape != dst_E.shape or src_E.dim() != 1:
        raise ValueError(
            f"src and dst must be two lists of one length, got {tuple(src_E.shape)} and {tuple(dst_E.shape)}"
        )
    for name, end_E, size in (("src", src_E, num_src), ("dst", dst_E, num_dst)):
        if end_E.numel() and not 0 <= int(end_E.min()) <= int(end_E.max()) < size:
            raise ValueError(f"{name} must be within 0..{size - 1}, got {int(end_E.min())}..{int(end_E.max())}")
    if backend == "torch":
        from tripletune.models.message_passing.torch_backend import (
            TorchGraph,  # here: the back ends import the interface
        )

        return TorchGraph.build(src_E, dst_E, num_src, num_dst)
    from tripletune.models.message_passing.dgl_backend import DglGraph  # here: a GPU machine need not load DGL

    return DglGraph.build(src_E, dst_E, num_src, num_dst)
