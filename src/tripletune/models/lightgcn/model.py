"""LightGCN (He et al., SIGIR 2020, https://arxiv.org/abs/2002.02126) without a table of users.

The published model learns a base vector for each user and each film. Here a user's base vector is zero, so that a
user's vector is computed from the liked films alone: a user outside the fit gets one too, and a new like counts at
once. Everything else is as published: symmetric normalisation, no weights but the embeddings, and the mean of the
layers 0..K. With a zero base, odd layers are zero for films and even ones for users; they count in the mean.
"""

# Shape letters in this file: M films, U users, E likes, D embedding width, K layers
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tripletune.models.message_passing.gather import inverse_sqrt_degree
from tripletune.models.message_passing.graph import Backend, message_graph
from tripletune.models.message_passing.interface import MessageGraph

POOL_POWER = 0.5
"""The user's side of the symmetric normalisation, 1 / sqrt(number of likes), as ``pool_users`` applies it."""


@dataclass(frozen=True, slots=True)
class LikeGraph:
    """Bipartite graph of likes, in both directions, with ``degree ** -0.5`` of each side (0 where there is no like).

    The normalisation of an edge, 1 / sqrt(deg(u) deg(i)), is a product of two node terms: nodes are scaled before and
    after an unweighted sum, so that no edge needs a weight. Where likes have weights of their own, a degree is the sum
    of a node's weights, and the sums are weighted.
    """

    to_users: MessageGraph
    to_movies: MessageGraph
    weight_E: Tensor | None
    """Weight of each like in the sums; None: all equal."""
    viewer_scale_U1: Tensor
    movie_scale_M1: Tensor
    pool_scale_M1: Tensor
    """Scale of the films that a user is pooled from. All likes count equally here: the weights of a film that nobody
    liked lately sum to nearly 0, and division by the root of that would make it outweigh the rest of a history."""

    @classmethod
    def build(
        cls,
        user_E: Tensor,
        movie_E: Tensor,
        num_viewers: int,
        num_movies: int,
        backend: Backend,
        weight_E: Tensor | None = None,
    ) -> LikeGraph:
        """Build the graph from likes, on their device.

        Args:
            backend: as in ``message_graph``.
            weight_E: weight of each like; None: all equal.
        """
        scales = (
            _scale(user_E, num_viewers, weight_E),
            _scale(movie_E, num_movies, weight_E),
            _scale(movie_E, num_movies, None),
        )
        to_users = message_graph(movie_E, user_E, num_movies, num_viewers, backend)
        return cls(to_users, to_users.reversed(), weight_E, *scales)

    def sum_to_users(self, movies_MD: Tensor) -> Tensor:
        """Sum over each user's likes: (M, D) to (U, D)."""
        return self._sum(self.to_users, movies_MD)

    def sum_to_movies(self, users_UD: Tensor) -> Tensor:
        """Sum over each film's likes: (U, D) to (M, D)."""
        return self._sum(self.to_movies, users_UD)

    def _sum(self, graph: MessageGraph, source_SD: Tensor) -> Tensor:
        if self.weight_E is None:
            return graph.sum_neighbours(source_SD)
        weight_E1 = self.weight_E.to(source_SD.dtype).unsqueeze(1)
        return graph.weighted_sum(source_SD.unsqueeze(1), weight_E1).squeeze(1)


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
            ``movies_MD``: mean of the films' layers 0..K. ``pool_MD``: the summands of a user. A user's mean over
            the layers 0..K is ``sum over likes of pool_MD[i] / sqrt(number of likes)``, so
            ``pool_users(pool_MD, ..., half_life=0, power=POOL_POWER)`` is the model's own user vector. Both in the
            embedding's dtype; ``pool_MD`` is zero for films without a like.
        """
        viewer_scale_U1 = graph.viewer_scale_U1.to(self.embedding_MD.dtype)
        movie_scale_M1 = graph.movie_scale_M1.to(self.embedding_MD.dtype)
        layer_MD: Tensor = self.embedding_MD
        movies_MD = sources_MD = layer_MD
        for layer in range(2, self.layers + 1, 2):  # two steps at once: films -> users -> films
            users_UD = viewer_scale_U1 * graph.sum_to_users(movie_scale_M1 * layer_MD)
            layer_MD = movie_scale_M1 * graph.sum_to_movies(viewer_scale_U1 * users_UD)
            movies_MD = movies_MD + layer_MD
            if layer < self.layers:  # users' layer k + 1 comes from the films' layer k
                sources_MD = sources_MD + layer_MD
        mean = 1 / (self.layers + 1)
        return movies_MD * mean, graph.pool_scale_M1.to(movie_scale_M1.dtype) * sources_MD * mean
