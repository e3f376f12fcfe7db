"""Message passing by torch alone: sparse products over sorted edges, and their cached transpose for the gradients."""

# Shape letters in this file: as in ops.py; F features of a node, all of them in one row
from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from tripletune.graph.ops import MessageGraph

# said once a process by whichever graph is first; the products here are tested against dense ones
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

CHUNK_VALUES = 1 << 22
"""Gathered values held at once for the gradient of edge weights, instead of all (E, H, W)."""


class _Rows:
    """Edges sorted by the node that receives them, in compressed rows; equal nodes keep the given order."""

    def __init__(self, to_E: Tensor, of_E: Tensor, num_to: int, num_of: int) -> None:
        self.order_E = to_E.argsort(stable=True)
        self.start = torch.nn.functional.pad(torch.bincount(to_E, minlength=num_to).cumsum(0), (1, 0))
        self.of_E = of_E[self.order_E]
        self.shape = (num_to, num_of)

    def product(self, value_E: Tensor, features: Tensor) -> Tensor:
        """Sum of value times feature over each row: (E,) sorted, (nodes, F) to (rows, F); 16 bits sum in 32."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        matrix = torch.sparse_csr_tensor(
            self.start, self.of_E, value_E.to(dtype), size=self.shape, check_invariants=False
        )
        return (matrix @ features.to(dtype)).to(features.dtype)


class TorchGraph(MessageGraph):
    """Sparse products and segment reductions, on any device torch has them for."""

    def __init__(self, src_E: Tensor, dst_E: Tensor, num_src: int, num_dst: int) -> None:
        self.num_src, self.num_dst, self.num_edges = num_src, num_dst, src_E.numel()
        self.src_E, self.dst_E = src_E.long(), dst_E.long()
        self.incoming = _Rows(self.dst_E, self.src_E, num_dst, num_src)
        self.outgoing = _Rows(self.src_E, self.dst_E, num_src, num_dst)

    def _sum(self, source_SW: Tensor) -> Tensor:
        flat_SF = source_SW.reshape(self.num_src, -1)
        summed_DF: Tensor = _Sum.apply(flat_SF, self)  # type: ignore[no-untyped-call]
        return summed_DF.reshape(self.num_dst, *source_SW.shape[1:])

    def _softmax(self, score_EH: Tensor) -> Tensor:
        share_EH: Tensor = _Softmax.apply(score_EH, self)  # type: ignore[no-untyped-call]
        return share_EH

    def _weighted_sum(self, source_SHW: Tensor, weight_EH: Tensor) -> Tensor:
        summed_DHW: Tensor = _WeightedSum.apply(source_SHW, weight_EH, self)  # type: ignore[no-untyped-call]
        return summed_DHW


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source_SF: Tensor, graph: TorchGraph) -> Tensor:
        ctx.graph = graph
        return graph.incoming.product(source_SF.new_ones(graph.num_edges), source_SF)

    @staticmethod
    def backward(ctx: Any, grad_DF: Tensor) -> tuple[Tensor, None]:
        return ctx.graph.outgoing.product(grad_DF.new_ones(ctx.graph.num_edges), grad_DF.contiguous()), None


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score_EH: Tensor, graph: TorchGraph) -> Tensor:
        wide_EH = score_EH.to(torch.promote_types(score_EH.dtype, torch.float32))
        share_EH = (wide_EH - _segments(wide_EH, "max", graph)).exp()
        share_EH = share_EH / _segments(share_EH, "sum", graph)
        ctx.graph = graph
        ctx.save_for_backward(share_EH)
        return share_EH.to(score_EH.dtype)

    @staticmethod
    def backward(ctx: Any, grad_EH: Tensor) -> tuple[Tensor, None]:
        (share_EH,) = ctx.saved_tensors
        product_EH = share_EH * grad_EH
        return (product_EH - share_EH * _segments(product_EH, "sum", ctx.graph)).to(grad_EH.dtype), None


def _segments(value_EH: Tensor, reduce: str, graph: TorchGraph) -> Tensor:
    """Reduce over the incoming edges of each destination, and tell each edge: (E, H) to (E, H)."""
    rows = graph.incoming
    reduced_DH = torch.segment_reduce(value_EH[rows.order_E], reduce, offsets=rows.start, axis=0, unsafe=True)
    return reduced_DH[graph.dst_E]


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source_SHW: Tensor, weight_EH: Tensor, graph: TorchGraph) -> Tensor:
        ctx.graph = graph
        ctx.save_for_backward(source_SHW, weight_EH)
        return _by_heads(graph.incoming, weight_EH, source_SHW)

    @staticmethod
    def backward(ctx: Any, grad_DHW: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        source_SHW, weight_EH = ctx.saved_tensors
        graph = ctx.graph
        of_source = _by_heads(graph.outgoing, weight_EH, grad_DHW) if ctx.needs_input_grad[0] else None
        of_weight = _edge_gradient(source_SHW, grad_DHW, graph) if ctx.needs_input_grad[1] else None
        return of_source, None if of_weight is None else of_weight.to(weight_EH.dtype), None


def _by_heads(rows: _Rows, weight_EH: Tensor, features: Tensor) -> Tensor:
    weights = weight_EH[rows.order_E].unbind(1)
    heads = features.unbind(1)
    return torch.stack(
        [rows.product(w.contiguous(), f.contiguous()) for w, f in zip(weights, heads, strict=True)], dim=1
    )


def _edge_gradient(source_SHW: Tensor, grad_DHW: Tensor, graph: TorchGraph) -> Tensor:
    """Source times gradient of the destination, summed over the width: (E, H)."""
    chunk = max(1, CHUNK_VALUES // max(1, source_SHW[0].numel()))
    pairs = zip(torch.split(graph.src_E, chunk), torch.split(graph.dst_E, chunk), strict=True)
    return torch.cat([(source_SHW[src] * grad_DHW[dst]).sum(dim=-1) for src, dst in pairs])
