# Shape letters in this file: E edges
"""Choice of the message passing back end: DGL on the CPU, torch everywhere else."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tripletune.models.message_passing.interface import MessageGraph

Backend = Literal["auto", "dgl", "torch"]


def message_graph(src_E: Tensor, dst_E: Tensor, num_src: int, num_dst: int, backend: Backend = "auto") -> MessageGraph:
    """Build the graph with the back end for the tensors' device.

    Args:
        src_E, dst_E: end points of each edge, integer, ``0 <= src < num_src`` and ``0 <= dst < num_dst``.
        num_src, num_dst: sizes of the two node sets; equal ones may mean the same nodes.
        backend: ``auto`` takes DGL on a CPU and torch elsewhere. The two differ in the last bits.

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
    if backend == "torch" or (backend == "auto" and src_E.device.type != "cpu"):
        from tripletune.models.message_passing.torch_backend import (
            TorchGraph,  # here: the back ends import the interface
        )

        return TorchGraph.build(src_E, dst_E, num_src, num_dst)
    from tripletune.models.message_passing.dgl_backend import DglGraph  # here: a GPU machine need not load DGL

    return DglGraph(src_E, dst_E, num_src, num_dst)
