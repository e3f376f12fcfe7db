"""Message passing by torch alone, on any device: sparse products, bags and segment reductions over sorted edges.

Nothing here synchronises with the device or copies from it: sizes are fixed at the start, and every order is computed
once.
"""

# Shape letters in this file: as in compressed.py
from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from tripletune.models.message_passing.compressed import CompressedGraph, CompressedRows

# a warning of the first graph in a process; the products here are tested against dense ones
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

CHUNK_VALUES = {"cpu": 1 << 18}
"""Gathered values held at once for the gradient of edge weights: what a core's cache holds; a GPU takes more."""


class TorchRows(CompressedRows):
    """Torch's kernels."""

    def matrix(self, value_Z: Tensor) -> Tensor:
        """The (R, C) matrix with these values, which are not copied."""
        return torch.sparse_csr_tensor(
            self.start, self.column_Z, value_Z, size=self.shape, device=value_Z.device, check_invariants=False
        )

    def sum(self, features_CF: Tensor) -> Tensor:
        if features_CF.device.type != "cpu":
            return self.matrix(features_CF.new_ones(self.order_E.numel())) @ features_CF
        # each row is a bag: the kernel sums as it reads and fetches ahead, twice as fast as the sparse product
        return functional.embedding_bag(self.column_Z, features_CF, self.start, mode="sum", include_last_offset=True)

    def sum_edges(self, value_ZH: Tensor) -> Tensor:
        return self._reduce(value_ZH, "sum")

    def softmax(self, score_ZH: Tensor) -> Tensor:
        share_ZH = score_ZH.sub_(self.spread(self._reduce(score_ZH, "max"))).exp_()
        share_ZH /= self.spread(self.sum_edges(share_ZH))
        return share_ZH

    def products(self, value_ZH: Tensor, features_CHW: Tensor) -> Tensor:
        values, features = value_ZH.T.contiguous(), features_CHW.transpose(0, 1).contiguous()
        return torch.stack([self.matrix(v_Z) @ f_CW for v_Z, f_CW in zip(values, features, strict=True)], dim=1)

    def pair_products(self, left_RHW: Tensor, right_CHW: Tensor) -> Tensor:
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

    def _reduce(self, value_ZH: Tensor, how: str) -> Tensor:
        return torch.segment_reduce(value_ZH, how, offsets=self.start, axis=0, unsafe=True)


class TorchGraph(CompressedGraph):
    """Message graph by torch's kernels."""

    rows_of = TorchRows
