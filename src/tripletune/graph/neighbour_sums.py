"""Sums over neighbours on a CPU, by torch's ``embedding_bag``: the one operation of ``ops`` that LightGCN needs.

An entry of a bag is a neighbour: the kernel sums rows of the table of nodes as it reads them, and fetches the next ones
ahead. On a graph of millions of edges that is six to nine times faster than DGL's kernel without libxsmm (with libxsmm,
whose order of summation depends on the number of threads, DGL is as fast), and every sum is taken in the order of the
edges, whatever the number of threads. A weight per edge costs hardly more.
"""

# Shape letters in this file: S source nodes, D destination nodes, E edges as given, Z edges sorted by the node that
#   sums, N nodes that sum, W feature width
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class NeighbourSums(Protocol):
    """A fixed directed graph, for sums alone; ``ops.MessageGraph`` is one too."""

    def sum_neighbours(self, source_SW: Tensor) -> Tensor:
        """Sum over each destination's incoming edges of the source's features: (S, W) to (D, W)."""


@dataclass(frozen=True, slots=True)
class _Bags:
    """What each node sums: places ``neighbour_Z[start_N[n] : start_N[n + 1]]`` of the table."""

    neighbour_Z: Tensor
    start_N: Tensor
    weight_Z: Tensor | None

    @classmethod
    def build(cls, of_E: Tensor, neighbour_E: Tensor, num_nodes: int, weight_E: Tensor | None) -> _Bags:
        count_N = torch.bincount(of_E, minlength=num_nodes)
        if bool((of_E.diff() < 0).any()):
            order_Z = of_E.argsort(stable=True)
            neighbour_E = neighbour_E[order_Z]
            weight_E = None if weight_E is None else weight_E[order_Z]
        return cls(neighbour_E.int(), (count_N.cumsum(0) - count_N).int(), weight_E)

    def sum(self, table: Tensor) -> Tensor:
        weight_Z = None if self.weight_Z is None else self.weight_Z.to(table.dtype)
        return functional.embedding_bag(self.neighbour_Z, table, self.start_N, mode="sum", per_sample_weights=weight_Z)


@dataclass(frozen=True, slots=True)
class BagSums:
    """Both directions of one graph, so that one's gradient is the other's sum."""

    incoming: _Bags
    outgoing: _Bags

    @classmethod
    def build(cls, src_E: Tensor, dst_E: Tensor, num_src: int, num_dst: int, weight_E: Tensor | None = None) -> BagSums:
        """From the end points of each edge, on the CPU, ``0 <= src < num_src`` and ``0 <= dst < num_dst``.

        Args:
            weight_E: factor of each edge's source; None: 1. No gradient reaches it.
        """
        return cls(_Bags.build(dst_E, src_E, num_dst, weight_E), _Bags.build(src_E, dst_E, num_src, weight_E))

    def reversed(self) -> BagSums:
        """The graph with every edge turned round; shares the memory."""
        return BagSums(self.outgoing, self.incoming)

    def sum_neighbours(self, source_SW: Tensor) -> Tensor:
        """Sum over each destination's incoming edges of the source's features, times weight: (S, W) to (D, W)."""
        summed_DW: Tensor = _Sum.apply(source_SW, self)  # type: ignore[no-untyped-call]
        return summed_DW


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source_SW: Tensor, graph: BagSums) -> Tensor:
        ctx.graph = graph
        return graph.incoming.sum(source_SW)

    @staticmethod
    def backward(ctx: Any, grad_DW: Tensor) -> tuple[Tensor, None]:
        return ctx.graph.outgoing.sum(grad_DW.contiguous()), None
