"""Message passing: the three operations that both specialists are made of, behind one interface.

A ``MessageGraph`` is a fixed directed graph from S source nodes to D destination nodes (the two sets may be the same).
Models know only the interface; ``message_graph`` picks the back end. DGL's kernels are the back end today.
"""

# Shape letters in this file: S source nodes, D destination nodes, E edges, H heads, W feature width
from __future__ import annotations

import os
from abc import ABC, abstractmethod

import torch
from torch import Tensor

os.environ.setdefault("DGLBACKEND", "pytorch")  # without it the first import prints advice and writes into the home

import dgl

# libxsmm's blocks depend on the number of threads, and with them the order of a sum and its last bits
dgl.use_libxsmm(False)


class MessageGraph(ABC):
    """Three differentiable operations over the edges of one graph, in any floating dtype of at least 32 bits.

    Edges keep the order they were given in; repeated edges count as often as they are given. A destination without
    incoming edges receives zeros.
    """

    num_src: int
    num_dst: int
    num_edges: int

    @abstractmethod
    def sum_neighbours(self, source_SW: Tensor) -> Tensor:
        """Sum over each destination's incoming edges of the source's features: (S, ...) to (D, ...)."""

    @abstractmethod
    def softmax_incoming(self, score_EH: Tensor) -> Tensor:
        """Softmax over the incoming edges of each destination, head by head: (E, H) to (E, H)."""

    @abstractmethod
    def weighted_sum(self, source_SHW: Tensor, weight_EH: Tensor) -> Tensor:
        """Sum over each destination's incoming edges of weight times source: (S, H, W), (E, H) to (D, H, W)."""


class DglGraph(MessageGraph):
    """DGL 1.1's kernels: ``copy_u``/sum, ``edge_softmax``, ``u_mul_e``/sum."""

    def __init__(self, src_E: Tensor, dst_E: Tensor, num_src: int, num_dst: int) -> None:
        self.num_src, self.num_dst, self.num_edges = num_src, num_dst, src_E.numel()
        graph = dgl.heterograph(
            {("source", "to", "destination"): (src_E.int(), dst_E.int())},
            num_nodes_dict={"source": num_src, "destination": num_dst},
        )
        graph.create_formats_()
        self._graph = graph

    def sum_neighbours(self, source_SW: Tensor) -> Tensor:
        _require_rows("sources", source_SW, self.num_src)
        if self.num_edges == 0:
            return source_SW.new_zeros(self.num_dst, *source_SW.shape[1:])
        summed_DW: Tensor = dgl.ops.copy_u_sum(self._graph, source_SW)
        return summed_DW

    def softmax_incoming(self, score_EH: Tensor) -> Tensor:
        _require_rows("edges", score_EH, self.num_edges)
        if self.num_edges == 0:
            return score_EH
        share_EH: Tensor = dgl.ops.edge_softmax(self._graph, score_EH)
        return share_EH

    def weighted_sum(self, source_SHW: Tensor, weight_EH: Tensor) -> Tensor:
        _require_rows("sources", source_SHW, self.num_src)
        _require_rows("edges", weight_EH, self.num_edges)
        if self.num_edges == 0:
            return source_SHW.new_zeros(self.num_dst, *source_SHW.shape[1:])
        summed_DHW: Tensor = dgl.ops.u_mul_e_sum(self._graph, source_SHW, weight_EH.unsqueeze(-1))
        return summed_DHW


def message_graph(src_E: Tensor, dst_E: Tensor, num_src: int, num_dst: int) -> MessageGraph:
    """Build the graph with the back end for the tensors' device.

    Args:
        src_E, dst_E: end points of each edge, integer, ``0 <= src < num_src`` and ``0 <= dst < num_dst``.
        num_src, num_dst: sizes of the two node sets; equal ones may mean the same nodes.

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
    return DglGraph(src_E, dst_E, num_src, num_dst)


def take_rows(features: Tensor, row_E: Tensor) -> Tensor:
    """``features[row_E]`` for what is differentiated.

    The gradient of plain indexing adds with atomic operations on several threads, so that sums change from run to run
    in their last bits; that of ``index_select`` adds in order, and was ten times faster on 250,000 rows.
    """
    return features.index_select(0, row_E)


def inverse_sqrt_degree(node_E: Tensor, num_nodes: int) -> Tensor:
    """``degree ** -0.5`` of each node, 0 for a node without edges; shape (N,), float32."""
    degree_N = torch.bincount(node_E.long(), minlength=num_nodes).float()
    return torch.where(degree_N > 0, degree_N.rsqrt(), 0.0)


def _require_rows(what: str, features: Tensor, expected: int) -> None:
    if features.shape[0] != expected:
        raise ValueError(f"expected one row for each of the graph's {expected} {what}, got {features.shape[0]}")
