"""Scores of triples and films for a user, from R-GAT's vectors and weights.

    s(u, i, r, t) = log alpha_i(r, t) + beta <u, e_t> / sqrt(D)          score of a triple
    s(u, i) = bias_i + logsumexp over the film's triples of s(u, i, r, t)

The posterior over a film's triples that belongs to this sum selects the fact that explains the film to the user.
"""

# Shape letters in this file: M films, N entities, T triples, X rows of film and triple, U users, D width, P films
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tripletune.models.message_passing.fixed_order import matmul
from tripletune.models.message_passing.gather import take_rows
from tripletune.models.rgat.knowledge import Knowledge

ALPHA_MIN = 1e-12
"""Lower bound of a weight: the logarithm of an attention that rounded to 0 must stay finite."""


def renormalise(alpha_T: Tensor, movie_T: Tensor, num_movies: int) -> Tensor:
    """Divide by the sum over the film's triples, so that a film's weights sum to one without its self loop."""
    alpha_T = alpha_T.clamp(min=ALPHA_MIN)
    total_M = alpha_T.new_zeros(num_movies).index_add(0, movie_T, alpha_T)
    return alpha_T / take_rows(total_M, movie_T)


def segment_logsumexp(values_XU: Tensor, segment_X: Tensor, num_segments: int) -> Tensor:
    """Logsumexp over the rows of each segment; 0 for a segment without rows (a film without triples).

    Args:
        values_XU: (X,) or (X, U).
        segment_X: ascending, int64, 0 <= segment < ``num_segments``.

    Returns:
        (num_segments,) or (num_segments, U); finite for finite values, however large.
    """
    count = torch.bincount(segment_X, minlength=num_segments)
    with torch.no_grad():
        top = torch.segment_reduce(values_XU, "max", lengths=count, axis=0)
        top = torch.where(torch.isfinite(top), top, 0.0)
    shifted = (values_XU - top[segment_X]).exp()
    total = torch.zeros_like(top).index_add(0, segment_X, shifted)
    is_empty = (count == 0).reshape(-1, *[1] * (values_XU.dim() - 1))
    return torch.where(is_empty, 0.0, torch.where(is_empty, 1.0, total).log() + top)


@dataclass(frozen=True, slots=True)
class FilmScores:
    """Inputs of a score at one step of the training."""

    knowledge: Knowledge
    entities_ND: Tensor
    log_alpha_T: Tensor
    beta: Tensor
    """Scalar."""

    def block(self, users_UD: Tensor, movie_P: Tensor) -> Tensor:
        """Scores without bias of the given films for all users, shape (P, U); 0 for a film without triples."""
        asked_X, triple_X = self.knowledge.expand(movie_P)
        dots_XU = self._dots(self.knowledge.entity_T[triple_X], users_UD)
        return segment_logsumexp(take_rows(self.log_alpha_T, triple_X).unsqueeze(1) + dots_XU, asked_X, movie_P.numel())

    def pairs(self, users_UD: Tensor, user_P: Tensor, movie_P: Tensor) -> Tensor:
        """Scores without bias of (user, film) pairs, shape (P,)."""
        asked_X, triple_X = self.knowledge.expand(movie_P)
        entities_XD = take_rows(self.entities_ND, self.knowledge.entity_T[triple_X])
        dots_X = (take_rows(self._scaled(users_UD), user_P[asked_X]) * entities_XD).sum(dim=1)
        return segment_logsumexp(take_rows(self.log_alpha_T, triple_X) + dots_X, asked_X, movie_P.numel())

    def _dots(self, entity_X: Tensor, users_UD: Tensor) -> Tensor:
        """``beta <u, e> / sqrt(D)``, computed once per distinct entity, shape (X, U)."""
        distinct, place_X = torch.unique(entity_X, return_inverse=True)
        return take_rows(matmul(take_rows(self.entities_ND, distinct), self._scaled(users_UD).T), place_X)

    def _scaled(self, users_UD: Tensor) -> Tensor:
        dim = users_UD.shape[1]
        # a factor per column: the gradient of a scalar is a sum over all values, in an order that depends on threads
        scaled_UD: Tensor = users_UD * (self.beta / dim**0.5).expand(dim)
        return scaled_UD
