"""R-GAT: graph attention over a knowledge graph with matrices per relation and one softmax per node.

For a node i, over all its incoming edges (r, j), inverse relations and the self loop included:

    e_ij^r = a_r . LeakyReLU(W_r h_i + V_r h_j + g_r)        alpha = softmax over all (r, j) of i
    h_i' = h_i + sum over (r, j) of alpha V_r h_j            per head; the heads are joined

V_r starts near the identity: with the addend h_i, a film's vector then contains those of its entities from the first
step on, so <film, entity> measures shared entities, and training starts from there. With random V_r this has to be
learned entity by entity; see docs/decisions.md.

The within-node softmax across relations is ARGAT of Busbridge et al. (https://arxiv.org/abs/1904.05811), the scores are
dynamic as in GATv2 (Brody et al., ICLR 2022), the basis decomposition is that of R-GCN (Schlichtkrull et al., 2018).
"""

# Shape letters in this file: N nodes, T triples, E edges = 2 T + N, R relations, C = 2 R + 1 with inverses and self
#   loop, P (relation, source) pairs, Q (relation, destination) pairs, H heads, W width of a head, D = H W
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tripletune.models.message_passing.fixed_order import matmul, on_one_thread
from tripletune.models.message_passing.gather import take_rows
from tripletune.models.message_passing.graph import Backend, message_graph
from tripletune.models.message_passing.interface import MessageGraph

NEGATIVE_SLOPE = 0.2
EMBEDDING_STD = 0.5
"""With smaller values (0.1) the dot products are so near zero that the first dozens of steps learn nothing."""
NOISE = 0.1
"""Share of the random part in a matrix that starts near the identity."""


@dataclass(frozen=True, slots=True)
class RelationalGraph:
    """Edges in blocks by relation, and the distinct pairs of relation and end point, which are projected once each."""

    num_relations: int
    """C, inverses and the self loop included."""
    edges: MessageGraph
    """Graph from the P source pairs to the N nodes."""
    edge_blocks: list[int]
    """Edges of each relation."""
    source_E: Tensor
    destination_E: Tensor
    """Source pair and destination pair of each edge, counted from 0 within the edge's relation."""
    source_node_P: Tensor
    source_blocks: list[int]
    destination_node_Q: Tensor
    destination_blocks: list[int]
    edge_of_triple_T: Tensor
    """Edge of triple t from its tail to its head."""

    @classmethod
    def build(
        cls,
        head_T: Tensor,
        relation_T: Tensor,
        tail_T: Tensor,
        num_nodes: int,
        num_relations: int,
        backend: Backend,
    ) -> RelationalGraph:
        """Add inverse relations and self loops to triples.

        A head receives from its tail by relation r, a tail from its head by relation R + r, and every node from itself
        by 2 R. The graph is on the triples' device; ``backend`` is that of ``message_graph``.
        """
        everyone_N = torch.arange(num_nodes, device=head_T.device)
        self_N = torch.full_like(everyone_N, 2 * num_relations)
        relation_E = torch.cat([relation_T.long(), relation_T.long() + num_relations, self_N])
        source_E = torch.cat([tail_T.long(), head_T.long(), everyone_N])
        destination_E = torch.cat([head_T.long(), tail_T.long(), everyone_N])
        order_E = relation_E.argsort(stable=True)
        place_E = torch.empty_like(order_E)
        place_E[order_E] = torch.arange(order_E.numel(), device=order_E.device)
        relation_E, source_E, destination_E = relation_E[order_E], source_E[order_E], destination_E[order_E]
        num_all = 2 * num_relations + 1
        source_pairs, source_of_E = torch.unique(relation_E * num_nodes + source_E, return_inverse=True)
        destination_pairs, destination_of_E = torch.unique(relation_E * num_nodes + destination_E, return_inverse=True)

        source_count_C = torch.bincount(source_pairs // num_nodes, minlength=num_all)
        destination_count_C = torch.bincount(destination_pairs // num_nodes, minlength=num_all)

        return cls(
            num_relations=num_all,
            edges=message_graph(source_of_E, destination_E, source_pairs.numel(), num_nodes, backend),
            edge_blocks=torch.bincount(relation_E, minlength=num_all).tolist(),
            source_E=source_of_E - (source_count_C.cumsum(0) - source_count_C)[relation_E],
            destination_E=destination_of_E - (destination_count_C.cumsum(0) - destination_count_C)[relation_E],
            source_node_P=source_pairs % num_nodes,
            source_blocks=source_count_C.tolist(),
            destination_node_Q=destination_pairs % num_nodes,
            destination_blocks=destination_count_C.tolist(),
            edge_of_triple_T=place_E[: head_T.numel()],
        )


class RelationMatrices(nn.Module):
    """One D x D matrix per relation, or a mixture of shared bases when ``bases`` > 0.

    ``near_identity``: each relation's matrix starts as the identity plus a little noise, otherwise at random.
    """

    def __init__(
        self, num_relations: int, dim: int, bases: int, generator: torch.Generator, *, near_identity: bool = False
    ) -> None:
        super().__init__()
        bound = (3 / dim) ** 0.5  # keeps the variance of the multiplied vectors
        self.matrices_BDD = nn.Parameter(torch.empty(bases or num_relations, dim, dim))
        nn.init.uniform_(self.matrices_BDD, -bound, bound, generator=generator)
        self.mixture_CB = nn.Parameter(torch.empty(num_relations, bases)) if bases else None
        if self.mixture_CB is not None:
            nn.init.normal_(self.mixture_CB, std=bases**-0.5, generator=generator)
        if near_identity:
            self._start_near_identity()

    @torch.no_grad()
    def _start_near_identity(self) -> None:
        self.matrices_BDD.mul_(NOISE)
        identity_DD = torch.eye(self.matrices_BDD.shape[1])
        if self.mixture_CB is None:
            self.matrices_BDD.add_(identity_DD)
        else:
            self.matrices_BDD[0].add_(identity_DD)
            self.mixture_CB[:, 0] = 1.0

    def forward(self) -> Tensor:
        """Shape (C, D, D)."""
        if self.mixture_CB is None:
            return self.matrices_BDD
        bases, dim = self.matrices_BDD.shape[:2]
        return matmul(self.mixture_CB, self.matrices_BDD.view(bases, -1)).view(-1, dim, dim)


class RgatLayer(nn.Module):
    """One layer of relational attention."""

    def __init__(self, num_relations: int, dim: int, heads: int, bases: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.destination = RelationMatrices(num_relations, dim, bases, generator)
        self.source = RelationMatrices(num_relations, dim, bases, generator, near_identity=True)
        self.relation_CHW = nn.Parameter(torch.zeros(num_relations, heads, dim // heads))
        self.attention_CHW = nn.Parameter(torch.empty(num_relations, heads, dim // heads))
        nn.init.normal_(self.attention_CHW, std=(heads / dim) ** 0.5, generator=generator)

    def forward(self, nodes_ND: Tensor, graph: RelationalGraph) -> tuple[Tensor, Tensor]:
        """The increment ``h_i' - h_i`` (N, D), and alpha (E, H); each node's alpha sums to one per head.

        Alpha is in the graph's order of edges.
        """
        source = self._project(nodes_ND, self.source(), graph.source_node_P, graph.source_blocks)
        destination = self._project(nodes_ND, self.destination(), graph.destination_node_Q, graph.destination_blocks)
        blocks = zip(
            source,
            destination,
            torch.split(graph.source_E, graph.edge_blocks),
            torch.split(graph.destination_E, graph.edge_blocks),
            self.relation_CHW,
            self.attention_CHW,
            strict=True,
        )
        scores = [
            # relation by relation: no gradient is as large as all the pairs, no sum as large as all the edges
            (functional.leaky_relu(take_rows(to + g_HW, q) + take_rows(of, p), NEGATIVE_SLOPE) * a_HW).sum(dim=-1)
            for of, to, p, q, g_HW, a_HW in blocks
        ]
        alpha_EH = graph.edges.softmax_incoming(torch.cat(scores))
        return graph.edges.weighted_sum(torch.cat(source), alpha_EH).flatten(1), alpha_EH

    def _project(self, nodes_ND: Tensor, matrices_CDD: Tensor, node: Tensor, blocks: list[int]) -> list[Tensor]:
        """Each relation's matrix times its nodes, (pairs of the relation, H, W)."""
        parts = torch.split(take_rows(nodes_ND, node), blocks)
        shape = (self.heads, nodes_ND.shape[1] // self.heads)  # a relation without triples has nothing to infer it from
        return [matmul(part, m_DD).view(len(part), *shape) for part, m_DD in zip(parts, matrices_CDD, strict=True)]


class Rgat(nn.Module):
    """Entity vectors refined by layers of attention.

    Args:
        num_relations: C, inverses and the self loop included.
        dim: D, divisible by ``heads``.
        bases: 0 gives each relation a matrix of its own.
    """

    def __init__(
        self,
        num_nodes: int,
        num_relations: int,
        *,
        dim: int,
        heads: int,
        layers: int,
        bases: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim = {dim} must be divisible by heads = {heads}: each head has an equal part")
        self.embedding_ND = nn.Parameter(torch.empty(num_nodes, dim))
        nn.init.normal_(self.embedding_ND, std=EMBEDDING_STD, generator=generator)
        self.layers = nn.ModuleList(RgatLayer(num_relations, dim, heads, bases, generator) for _ in range(layers))

    def forward(self, graph: RelationalGraph) -> tuple[Tensor, Tensor]:
        """Refined entities (N, D), and the last layer's attention of each triple, mean over heads (T,).

        The rest of the head node's attention goes to its self loop: ``renormalise`` before use as a distribution.
        """
        nodes_ND = self.embedding_ND
        alpha_EH = nodes_ND.new_zeros(0)
        for index, layer in enumerate(self.layers):
            heard_ND, alpha_EH = layer(on_one_thread(functional.elu, nodes_ND) if index else nodes_ND, graph)
            nodes_ND = nodes_ND + heard_ND
        return nodes_ND, take_rows(alpha_EH, graph.edge_of_triple_T).mean(dim=1)
