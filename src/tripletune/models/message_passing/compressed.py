"""Message passing over edges sorted by row: what both back ends share, the gradients included.

A back end gives the kernels over one direction's edges (``CompressedRows``). The gradient of a sum over incoming edges
is the same kernel over the outgoing ones, so whatever holds of a kernel's bits holds of its gradient's.
"""

# Shape letters in this file: as in interface.py; F features of a node, all of them in one row; R rows, C columns
from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from tripletune.models.message_passing.interface import MessageGraph

INT32_MAX = 2**31 - 1


class CompressedRows(ABC):
    """Edges sorted by row, then by column, in compressed rows; an edge that is repeated keeps the given order.

    A tensor of edges is named by its order: ``X_E`` as the caller gave them, ``X_Z`` as sorted here.
    """

    def __init__(self, row_E: Tensor, column_E: Tensor, num_rows: int, num_columns: int) -> None:
        self.shape = (num_rows, num_columns)
        # products over 64-bit indices convert them each time, and a gather reads twice the bytes
        index = torch.int32 if max(row_E.numel(), *self.shape) <= INT32_MAX else torch.int64
        order_E = (row_E.long() * num_columns + column_E.long()).argsort(stable=True)
        start = functional.pad(torch.bincount(row_E, minlength=num_rows).cumsum(0), (1, 0))
        self.order_E, self.start = order_E.to(index), start.to(index)
        self.column_Z = column_E.to(index).index_select(0, self.order_E)

    @cached_property
    def place_E(self) -> Tensor:
        """Place of each given edge among the sorted ones."""
        place_E = torch.empty_like(self.order_E)
        place_E[self.order_E.long()] = torch.arange(place_E.numel(), dtype=place_E.dtype, device=place_E.device)
        return place_E

    @cached_property
    def row_Z(self) -> Tensor:
        """Row of each sorted edge."""
        rows = torch.arange(self.shape[0], dtype=self.start.dtype, device=self.start.device)
        return rows.repeat_interleave(self.start.diff(), output_size=self.order_E.numel())

    def sort(self, value_EH: Tensor) -> Tensor:
        """Values of the edges from the given order to the sorted one."""
        return value_EH.index_select(0, self.order_E)

    def unsort(self, value_ZH: Tensor) -> Tensor:
        """Values of the edges from the sorted order to the given one."""
        return value_ZH.index_select(0, self.place_E)

    def spread(self, value_RH: Tensor) -> Tensor:
        """Copy each row's values to its edges: (R, H) to (Z, H)."""
        return value_RH.index_select(0, self.row_Z)

    # the kernels: on at least one edge, without gradients, in 32 or 64 bits

    @abstractmethod
    def sum(self, features_CF: Tensor) -> Tensor:
        """Sum of the features of each row's columns: (C, F) to (R, F)."""

    @abstractmethod
    def sum_edges(self, value_ZH: Tensor) -> Tensor:
        """Sum of the values of each row's edges: (Z, H) to (R, H)."""

    @abstractmethod
    def softmax(self, score_ZH: Tensor) -> Tensor:
        """Softmax over each row's edges, head by head, (Z, H) to (Z, H); may overwrite the scores."""

    @abstractmethod
    def products(self, value_ZH: Tensor, features_CHW: Tensor) -> Tensor:
        """For each head the matrix with its values times its features: (Z, H), (C, H, W) to (R, H, W)."""

    @abstractmethod
    def pair_products(self, left_RHW: Tensor, right_CHW: Tensor) -> Tensor:
        """For each edge and head its row's features times its column's: (Z, H), without holding (Z, H, W)."""


class CompressedGraph(MessageGraph):
    """Message graph by the kernels of ``rows_of`` over the edges of each destination, and of each source."""

    rows_of: ClassVar[type[CompressedRows]]

    def __init__(self, incoming: CompressedRows, outgoing: CompressedRows) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.num_dst, self.num_src = incoming.shape
        self.num_edges = incoming.order_E.numel()

    @classmethod
    def build(cls, src_E: Tensor, dst_E: Tensor, num_src: int, num_dst: int) -> Self:
        """From the end points of each edge, on their device."""
        return cls(cls.rows_of(dst_E, src_E, num_dst, num_src), cls.rows_of(src_E, dst_E, num_src, num_dst))

    def reversed(self) -> Self:
        """The graph with all edges turned round; it shares their memory."""
        return type(self)(self.outgoing, self.incoming)

    def _sum(self, source_SW: Tensor) -> Tensor:
        flat_SF = source_SW.reshape(self.num_src, -1)
        summed_DF: Tensor = _Sum.apply(flat_SF, self)  # type: ignore[no-untyped-call]
        return summed_DF.reshape(self.num_dst, *source_SW.shape[1:])

    def _softmax(self, score_EH: Tensor) -> Tensor:
        share_EH: Tensor = _Softmax.apply(score_EH, self.incoming)  # type: ignore[no-untyped-call]
        return share_EH

    def _weighted_sum(self, source_SHW: Tensor, weight_EH: Tensor) -> Tensor:
        summed_DHW: Tensor = _WeightedSum.apply(source_SHW, weight_EH, self)  # type: ignore[no-untyped-call]
        return summed_DHW


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source_SF: Tensor, graph: CompressedGraph) -> Tensor:
        ctx.graph = graph
        return graph.incoming.sum(source_SF)

    @staticmethod
    def backward(ctx: Any, grad_DF: Tensor) -> tuple[Tensor, None]:
        return ctx.graph.outgoing.sum(grad_DF.contiguous()), None


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score_EH: Tensor, rows: CompressedRows) -> Tensor:
        share_ZH = rows.softmax(rows.sort(score_EH))
        ctx.rows = rows
        ctx.save_for_backward(share_ZH)
        return rows.unsort(share_ZH)

    @staticmethod
    def backward(ctx: Any, grad_EH: Tensor) -> tuple[Tensor, None]:
        (share_ZH,) = ctx.saved_tensors
        rows = ctx.rows
        product_ZH = rows.sort(grad_EH).mul_(share_ZH)
        total_ZH = rows.spread(rows.sum_edges(product_ZH))
        return rows.unsort(product_ZH.addcmul_(share_ZH, total_ZH, value=-1)), None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source_SHW: Tensor, weight_EH: Tensor, graph: CompressedGraph) -> Tensor:
        ctx.graph = graph
        ctx.save_for_backward(source_SHW, weight_EH)
        return graph.incoming.products(graph.incoming.sort(weight_EH), source_SHW)

    @staticmethod
    def backward(ctx: Any, grad_DHW: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        source_SHW, weight_EH = ctx.saved_tensors
        incoming, outgoing = ctx.graph.incoming, ctx.graph.outgoing
        of_source = outgoing.products(outgoing.sort(weight_EH), grad_DHW) if ctx.needs_input_grad[0] else None
        of_weight = incoming.unsort(incoming.pair_products(grad_DHW, source_SHW)) if ctx.needs_input_grad[1] else None
        return of_source, of_weight, None
