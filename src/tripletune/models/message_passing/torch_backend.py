"""Message passing by torch alone: sparse products over sorted edges, and their cached transpose for the gradients.

Nothing here synchronises with the device or copies from it: sizes are fixed at the start, and every order is computed
once.
"""

# Shape letters in this file: as in interface.py; F features of a node, all of them in one row; R rows, C columns
from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tripletune.models.message_passing.interface import MessageGraph

# a warning of the first graph in a process; the products here are tested against dense ones
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

INT32_MAX = 2**31 - 1
CHUNK_VALUES = {"cpu": 1 << 18}
"""Gathered values held at once for the gradient of edge weights: what a core's cache holds; a GPU takes more."""


class _Rows:
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
        rows = torch.arange(self.shape[0], dtype=self.start.dtype, device=self.start.device)
        return rows.repeat_interleave(self.start.diff(), output_size=self.order_E.numel())

    def sort(self, value_EH: Tensor) -> Tensor:
        """Values of the edges from the given order to the sorted one."""
        return value_EH.index_select(0, self.order_E)

    def unsort(self, value_ZH: Tensor) -> Tensor:
        """Values of the edges from the sorted order to the given one."""
        return value_ZH.index_select(0, self.place_E)

    def matrix(self, value_Z: Tensor) -> Tensor:
        """The (R, C) matrix with these values, which are not copied."""
        return torch.sparse_csr_tensor(
            self.start, self.column_Z, value_Z, size=self.shape, device=value_Z.device, check_invariants=False
        )

    def sum(self, features_CF: Tensor) -> Tensor:
        """Sum of each row's features: (C, F) to (R, F)."""
        if features_CF.device.type != "cpu":
            return self.matrix(features_CF.new_ones(self.order_E.numel())) @ features_CF
        # each row is a bag: the kernel sums as it reads and fetches ahead, twice as fast as the sparse product
        return functional.embedding_bag(self.column_Z, features_CF, self.start, mode="sum", include_last_offset=True)

    def spread(self, value_RH: Tensor) -> Tensor:
        """Copy each row's values to its edges: (R, H) to (Z, H)."""
        return value_RH.index_select(0, self.row_Z)

    def reduce(self, value_ZH: Tensor, how: str) -> Tensor:
        """Reduce each row's edges: (Z, H) to (R, H)."""
        return torch.segment_reduce(value_ZH, how, offsets=self.start, axis=0, unsafe=True)

    def products(self, value_ZH: Tensor, features_CHW: Tensor) -> Tensor:
        """For each head the matrix with its values times its features: (Z, H), (C, H, W) to (R, H, W)."""
        values, features = value_ZH.T.contiguous(), features_CHW.transpose(0, 1).contiguous()
        return torch.stack([self.matrix(v_Z) @ f_CW for v_Z, f_CW in zip(values, features, strict=True)], dim=1)

    def pair_products(self, left_RHW: Tensor, right_CHW: Tensor) -> Tensor:
        """For each edge and head its row's features times its column's: (Z, H), without holding (Z, H, W)."""
        heads, width = left_RHW.shape[1:]
        left_RF, right_CF = left_RHW.reshape(-1, heads * width), right_CHW.reshape(-1, heads * width)
        chunk = max(1, CHUNK_VALUES.get(left_RF.device.type, 1 << 25) // (heads * width))
        parts = zip(torch.split(self.row_Z, chunk), torch.split(self.column_Z, chunk), strict=True)
        gathered = ((left_RF.index_select(0, row), right_CF.index_select(0, column)) for row, column in parts)
        # torch.sparse.sampled_addmm takes half the time, but corrupts memory where repeated edges outnumber all pairs
        products = [
            torch.bmm(left.view(-1, 1, width), right.view(-1, width, 1)).view(-1, heads) for left, right in gathered
        ]
        return torch.cat(products)


class TorchGraph(MessageGraph):
    """Message graph by sparse products and segment reductions, on any device for which torch has them."""

    def __init__(self, incoming: _Rows, outgoing: _Rows) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.num_dst, self.num_src = incoming.shape
        self.num_edges = incoming.order_E.numel()

    @classmethod
    def build(cls, src_E: Tensor, dst_E: Tensor, num_src: int, num_dst: int) -> TorchGraph:
        """From the end points of each edge, on their device."""
        return cls(_Rows(dst_E, src_E, num_dst, num_src), _Rows(src_E, dst_E, num_src, num_dst))

    def reversed(self) -> TorchGraph:
        return TorchGraph(self.outgoing, self.incoming)

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
    def forward(ctx: Any, source_SF: Tensor, graph: TorchGraph) -> Tensor:
        ctx.graph = graph
        return graph.incoming.sum(source_SF)

    @staticmethod
    def backward(ctx: Any, grad_DF: Tensor) -> tuple[Tensor, None]:
        return ctx.graph.outgoing.sum(grad_DF.contiguous()), None


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, score_EH: Tensor, rows: _Rows) -> Tensor:
        score_ZH = rows.sort(score_EH)
        share_ZH = score_ZH.sub_(rows.spread(rows.reduce(score_ZH, "max"))).exp_()
        share_ZH /= rows.spread(rows.reduce(share_ZH, "sum"))
        ctx.rows = rows
        ctx.save_for_backward(share_ZH)
        return rows.unsort(share_ZH)

    @staticmethod
    def backward(ctx: Any, grad_EH: Tensor) -> tuple[Tensor, None]:
        (share_ZH,) = ctx.saved_tensors
        rows = ctx.rows
        product_ZH = rows.sort(grad_EH).mul_(share_ZH)
        total_ZH = rows.spread(rows.reduce(product_ZH, "sum"))
        return rows.unsort(product_ZH.addcmul_(share_ZH, total_ZH, value=-1)), None


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, source_SHW: Tensor, weight_EH: Tensor, graph: TorchGraph) -> Tensor:
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
