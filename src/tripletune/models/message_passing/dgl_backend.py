"""Message passing by DGL's kernels, for the CPU."""

# Shape letters in this file: as in interface.py
from __future__ import annotations

import os

from torch import Tensor

from tripletune.models.message_passing.interface import MessageGraph

os.environ.setdefault("DGLBACKEND", "pytorch")  # without it the first import prints advice and writes into the home

import dgl

# libxsmm's blocks depend on the number of threads, and so do the order of a sum and its last bits
dgl.use_libxsmm(False)


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

    def reversed(self) -> DglGraph:
        src_E, dst_E = self._graph.edges(order="eid")
        return DglGraph(dst_E, src_E, self.num_dst, self.num_src)

    def _sum(self, source_SW: Tensor) -> Tensor:
        summed_DW: Tensor = dgl.ops.copy_u_sum(self._graph, source_SW)
        return summed_DW

    def _softmax(self, score_EH: Tensor) -> Tensor:
        share_EH: Tensor = dgl.ops.edge_softmax(self._graph, score_EH)
        return share_EH

    def _weighted_sum(self, source_SHW: Tensor, weight_EH: Tensor) -> Tensor:
        summed_DHW: Tensor = dgl.ops.u_mul_e_sum(self._graph, source_SHW, weight_EH.unsqueeze(-1))
        return summed_DHW
