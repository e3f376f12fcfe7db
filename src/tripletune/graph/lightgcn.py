"""LightGCN (He et al., SIGIR 2020, https://arxiv.org/abs/2002.02126) without a table of users.

The published model learns a base vector for each user and each film. Here a user's base vector is zero, so that a
viewer's vector is always what arrives from the liked films: a viewer whom no fit has seen gets one too, and a new like
counts at once. Everything else is as published: symmetric normalisation, no weights but the embeddings, and the mean of
the layers 0..K. With a zero base, odd layers are zero for films and even ones for viewers; they count in the mean.
"""

# Shape letters in this file: M films, U viewers, E likes, D embedding width, K layers
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tripletune.graph.neighbour_sums import BagSums, NeighbourSums
from tripletune.graph.ops import MessageGraph, inverse_sqrt_degree, message_graph

POOL_POWER = 0.5
"""The viewer's side of the symmetric normalisation, 1 / sqrt(number of likes), as ``pool_viewers`` applies it."""


Backend = Literal["auto", "bag", "dgl", "torch"]


@dataclass(frozen=True, slots=True)
class LikeGraph:
    """Who liked what, in both directions, with ``degree ** -0.5`` of each side (0 where there is no like).

    The normalisation of an edge, 1 / sqrt(deg(u) deg(i)), is a product of two node terms: nodes are scaled before and
    after an unweighted sum, so that no edge needs a weight. Where likes have weights of their own, a degree is the sum
    of a node's weights, and the sums are weighted.
    """

    to_viewers: NeighbourSums
    to_movies: NeighbourSums
    viewer_scale_U1: Tensor
    movie_scale_M1: Tensor
    pool_scale_M1: Tensor
    """Of the films a viewer is made of. All likes count alike here: the likes of a film that nobody liked lately have a
    sum near 0, and what divides by its root would drown the rest of a history."""

    @classmethod
    def build(
        cls,
        viewer_E: Tensor,
        movie_E: Tensor,
        num_viewers: int,
        num_movies: int,
        backend: Backend = "auto",
        weight_E: Tensor | None = None,
    ) -> LikeGraph:
        """From the likes, on their device.

        Args:
            backend: ``bag`` sums by ``neighbour_sums``, on a CPU alone; ``dgl`` and ``torch`` by ``ops``. ``auto``
                takes bag on a CPU and torch elsewhere. They differ in the last bits.
        """
        scales = (
            _scale(viewer_E, num_viewers, weight_E),
            _scale(movie_E, num_movies, weight_E),
            _scale(movie_E, num_movies, None),
        )
        if backend == "bag" or (backend == "auto" and viewer_E.device.type == "cpu"):
            sums = BagSums.build(movie_E, viewer_E, num_movies, num_viewers, weight_E)
            return cls(sums, sums.reversed(), *scales)
        to_viewers = message_graph(movie_E, viewer_E, num_movies, num_viewers, backend)
        to_movies = message_graph(viewer_E, movie_E, num_viewers, num_movies, backend)
        if weight_E is None:
            return cls(to_viewers, to_movies, *scales)
        return cls(_Weighted(to_viewers, weight_E), _Weighted(to_movies, weight_E), *scales)


@dataclass(frozen=True, slots=True)
class _Weighted:
    """Sums of ``ops`` with a weight for each edge."""

    graph: MessageGraph
    weight_E: Tensor

    def sum_neighbours(self, source_SW: Tensor) -> Tensor:
        return self.graph.weighted_sum(source_SW.unsqueeze(1), self.weight_E.to(source_SW.dtype).unsqueeze(1)).squeeze(
            1
        )


def _scale(node_E: Tensor, num_nodes: int, weight_E: Tensor | None) -> Tensor:
    if weight_E is None:
        return inverse_sqrt_degree(node_E, num_nodes).unsqueeze(1)
    degree_N = torch.bincount(node_E, weights=weight_E.double(), minlength=num_nodes).float()
    return torch.where(degree_N > 0, degree_N.rsqrt(), 0.0).unsqueeze(1)


class LightGCN(nn.Module):
    """Film embeddings smoothed over the graph of likes."""

    def __init__(self, num_movies: int, dim: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = layers
        self.embedding_MD = nn.Parameter(torch.empty(num_movies, dim))
        nn.init.normal_(self.embedding_MD, std=0.1, generator=generator)  # as in the authors' code

    def forward(self, graph: LikeGraph) -> tuple[Tensor, Tensor]:
        """Propagate, and average the layers.

        Returns:
            ``movies_MD``: mean of the films' layers 0..K. ``pool_MD``: what a viewer is a sum of. A viewer's mean over
            the layers 0..K is ``sum over likes of pool_MD[i] / sqrt(number of likes)``, so
            ``pool_viewers(pool_MD, ..., half_life=0, power=POOL_POWER)`` is the model's own viewer vector. Both in the
            embedding's dtype; ``pool_MD`` is zero for films without a like.
        """
        viewer_scale_U1 = graph.viewer_scale_U1.to(self.embedding_MD.dtype)
        movie_scale_M1 = graph.movie_scale_M1.to(self.embedding_MD.dtype)
        layer_MD: Tensor = self.embedding_MD
        movies_MD = sources_MD = layer_MD
        for layer in range(2, self.layers + 1, 2):  # two steps at once: films -> viewers -> films
            viewers_UD = viewer_scale_U1 * graph.to_viewers.sum_neighbours(movie_scale_M1 * layer_MD)
            layer_MD = movie_scale_M1 * graph.to_movies.sum_neighbours(viewer_scale_U1 * viewers_UD)
            movies_MD = movies_MD + layer_MD
            if layer < self.layers:  # viewers' layer k + 1 comes from the films' layer k
                sources_MD = sources_MD + layer_MD
        mean = 1 / (self.layers + 1)
        return movies_MD * mean, graph.pool_scale_M1.to(movie_scale_M1.dtype) * sources_MD * mean
