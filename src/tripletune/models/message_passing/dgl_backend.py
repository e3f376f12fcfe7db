"""Message passing by DGL's kernels, for the CPU.

Rows are cut into blocks by the graph alone, and each block is computed by one thread of our own, with one thread of
DGL's: no order of additions can follow from their number.
"""

# Shape letters in this file: as in compressed.py
from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tripletune.models.message_passing.compressed import CompressedGraph, CompressedRows
from tripletune.models.message_passing.device import HAS_AVX2
from tripletune.threads import map_blocks

os.environ.setdefault("DGLBACKEND", "pytorch")  # without it the first import prints advice and writes into the home

import dgl

dgl.use_libxsmm(HAS_AVX2)  # without AVX2 libxsmm's sums are wrong in DGL 1.1.3; its plain ones are nine times slower

BLOCK_EDGES = 1 << 17
"""Edges of a block, and at most one row more: a millisecond for sums of 64 features."""


class _Block(NamedTuple):
    graph: Any
    """DGL's graph from all columns to the block's rows; its edges are the block's, in sorted order."""
    rows: slice
    edges: slice


class DglRows(CompressedRows):
    """DGL 1.1's kernels: ``copy_u``/sum, ``copy_e``/sum, ``edge_softmax``, ``u_mul_e``/sum, ``u_dot_v``."""

    @cached_property
    def _blocks(self) -> list[_Block]:
        num_rows, num_columns = self.shape
        start, num_edges = self.start, self.column_Z.numel()
        ends = torch.searchsorted(start, torch.tensor(range(BLOCK_EDGES, num_edges, BLOCK_EDGES), dtype=start.dtype))
        rows = sorted({0, *ends.tolist(), num_rows})
        edges = start[rows].tolist()
        largest = max(last - first for first, last in pairwise(edges))
        number_Z = torch.arange(largest, dtype=start.dtype)  # of a block's edges; without it libxsmm reads from nowhere
        blocks = []
        for (top, bottom), (first, last) in zip(pairwise(rows), pairwise(edges), strict=True):
            csc = (start[top : bottom + 1] - first, self.column_Z[first:last], number_Z[: last - first])
            graph = dgl.heterograph(
                {("column", "to", "row"): ("csc", csc)}, num_nodes_dict={"column": num_columns, "row": bottom - top}
            )
            blocks.append(_Block(graph, slice(top, bottom), slice(first, last)))
        return blocks

    def sum(self, features_CF: Tensor) -> Tensor:
        out_RF = features_CF.new_empty(self.shape[0], features_CF.shape[1])
        return self._fill(out_RF, lambda block: dgl.ops.copy_u_sum(block.graph, features_CF))

    def sum_edges(self, value_ZH: Tensor) -> Tensor:
        out_RH = value_ZH.new_empty(self.shape[0], value_ZH.shape[1])
        return self._fill(out_RH, lambda block: dgl.ops.copy_e_sum(block.graph, value_ZH[block.edges]))

    def softmax(self, score_ZH: Tensor) -> Tensor:
        return self._fill(score_ZH, lambda block: dgl.ops.edge_softmax(block.graph, score_ZH[block.edges]), "edges")

    def products(self, value_ZH: Tensor, features_CHW: Tensor) -> Tensor:
        out_RHW = features_CHW.new_empty(self.shape[0], *features_CHW.shape[1:])
        value_ZH1, features_CHW = value_ZH.unsqueeze(-1), features_CHW.contiguous()
        return self._fill(out_RHW, lambda block: dgl.ops.u_mul_e_sum(block.graph, features_CHW, value_ZH1[block.edges]))

    def pair_products(self, left_RHW: Tensor, right_CHW: Tensor) -> Tensor:
        left_RHW, right_CHW = left_RHW.contiguous(), right_CHW.contiguous()
        out_ZH1 = left_RHW.new_empty(self.column_Z.numel(), left_RHW.shape[1], 1)
        return self._fill(
            out_ZH1, lambda block: dgl.ops.u_dot_v(block.graph, right_CHW, left_RHW[block.rows]), "edges"
        ).squeeze(-1)

    def _fill(self, out: Tensor, compute: Callable[[_Block], Tensor], part: str = "rows") -> Tensor:
        """Compute every block's part of the result on one thread each."""

        def fill(number: int) -> None:
            block = self._blocks[number]
            out[getattr(block, part)] = compute(block)

        for _ in map_blocks(fill, len(self._blocks)):
            pass
        return out


class DglGraph(CompressedGraph):
    """Message graph by DGL's kernels."""

    rows_of = DglRows
