"""What LightGCN is trained with: one softmax over all films, or the published pairwise loss.

Both are summed over (viewer, film) rows with a weight each.
"""

# Shape letters in this file: B viewers, M films, D width, R target rows, K rows of known likes, V viewers of a block
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tripletune.graph.ops import take_rows

BLOCK_VIEWERS = 128
"""Scores of so many viewers and all films are held at once: 128 x 87,585 floats are 45 MB."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Which films should come out on top for the viewers of a batch. All rows are sorted by viewer.

    ``known_*``: likes that made the viewer's vector; they stand outside the softmax and are never negatives.
    """

    viewer_R: Tensor
    movie_R: Tensor
    weight_R: Tensor
    known_viewer_K: Tensor
    known_movie_K: Tensor


class _SoftmaxOverFilms(torch.autograd.Function):
    """Computes its gradients in the forward pass, block by block, so that the B x M scores are never held.

    Ten times faster than autograd over ``log_softmax`` of the whole matrix: blocks stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, viewers_BD: Tensor, movies_MD: Tensor, bias_M: Tensor, targets: Targets) -> Tensor:
        num_viewers = viewers_BD.shape[0]
        grad_viewers_BD, grad_movies_MD = torch.empty_like(viewers_BD), torch.zeros_like(movies_MD)
        grad_bias_M = torch.zeros_like(bias_M)
        loss = viewers_BD.new_zeros(())
        for start in range(0, num_viewers, BLOCK_VIEWERS):
            stop = min(start + BLOCK_VIEWERS, num_viewers)
            rows, known = _between(targets.viewer_R, start, stop), _between(targets.known_viewer_K, start, stop)
            viewer_R, movie_R = targets.viewer_R[rows] - start, targets.movie_R[rows]
            weight_R = targets.weight_R[rows].to(viewers_BD.dtype)
            scores_VM = torch.addmm(bias_M, viewers_BD[start:stop], movies_MD.T)
            scores_VM[targets.known_viewer_K[known] - start, targets.known_movie_K[known]] = -torch.inf
            log_sum_V = scores_VM.logsumexp(dim=1)
            loss += (weight_R * (log_sum_V[viewer_R] - scores_VM[viewer_R, movie_R])).sum()
            total_V = weight_R.new_zeros(stop - start).index_add_(0, viewer_R, weight_R)
            grad_VM = scores_VM.sub_(log_sum_V.unsqueeze(1)).exp_().mul_(total_V.unsqueeze(1))
            grad_VM.view(-1).index_add_(0, viewer_R * movies_MD.shape[0] + movie_R, -weight_R)
            grad_viewers_BD[start:stop] = grad_VM @ movies_MD
            grad_movies_MD.addmm_(grad_VM.T, viewers_BD[start:stop])
            grad_bias_M += grad_VM.sum(dim=0)
        ctx.save_for_backward(grad_viewers_BD, grad_movies_MD, grad_bias_M)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        grad_viewers_BD, grad_movies_MD, grad_bias_M = ctx.saved_tensors
        (grad,) = grads
        return grad * grad_viewers_BD, grad * grad_movies_MD, grad * grad_bias_M, None


def softmax_loss(viewers_BD: Tensor, movies_MD: Tensor, bias_M: Tensor, targets: Targets) -> Tensor:
    """``- sum over rows of weight * log softmax(<viewer, film> + bias)``, known likes left out of the softmax.

    Returns:
        A scalar, differentiable in the first three arguments. No target row may be a known like of its viewer.
    """
    loss: Tensor = _SoftmaxOverFilms.apply(viewers_BD, movies_MD, bias_M, targets)  # type: ignore[no-untyped-call]
    return loss


def bpr_loss(viewers_BD: Tensor, movies_MD: Tensor, targets: Targets, generator: torch.Generator) -> Tensor:
    """Bayesian personalised ranking (Rendle et al., UAI 2009; LightGCN equation 15): one negative for each target row.

    The negative is uniform over the films that are neither a target nor a known like of the row's viewer.

    Returns:
        ``- sum over rows of weight * log sigmoid(score of the target - score of the negative)``, a scalar.
    """
    num_movies = movies_MD.shape[0]
    target_R = targets.viewer_R * num_movies + targets.movie_R
    known_K = targets.known_viewer_K * num_movies + targets.known_movie_K
    liked = torch.unique_consecutive(torch.cat([target_R, known_K]).sort().values)
    negative_R = draw_unliked(targets.viewer_R, liked, num_movies, generator)
    viewers_RD = take_rows(viewers_BD, targets.viewer_R)
    difference_RD = take_rows(movies_MD, targets.movie_R) - take_rows(movies_MD, negative_R)
    margin_R = (viewers_RD * difference_RD).sum(dim=1)
    return -(targets.weight_R.to(margin_R.dtype) * functional.logsigmoid(margin_R)).sum()


def draw_unliked(viewer_R: Tensor, liked: Tensor, num_movies: int, generator: torch.Generator) -> Tensor:
    """A film for each row, uniform over those whose ``viewer * num_movies + film`` is not in ``liked`` (ascending).

    The j-th unliked film of a viewer is found by counting the liked ones below it, so nothing is drawn twice.

    Returns:
        int64, shape (R,).

    Raises:
        ValueError: a viewer of the rows likes every film.
    """
    liked_viewer = liked // num_movies
    first_R, end_R = torch.searchsorted(liked_viewer, viewer_R), torch.searchsorted(liked_viewer, viewer_R, right=True)
    num_unliked_R = num_movies - (end_R - first_R)
    if bool((num_unliked_R == 0).any()):
        raise ValueError("a viewer likes every film: there is no negative to draw")
    wish_R = (torch.rand(viewer_R.shape, generator=generator, dtype=torch.float64) * num_unliked_R).long()
    # liked film number k (from 0) has (film - k) unliked ones before it: the sought film lies behind all with <= wish
    place = torch.arange(liked.numel()) - torch.searchsorted(liked_viewer, liked_viewer)
    gaps = liked - place  # ascending within a viewer, and across viewers since a viewer has at least one unliked film
    behind_R = torch.searchsorted(gaps, viewer_R * num_movies + wish_R, right=True)
    return wish_R + behind_R - first_R


def _between(sorted_viewer: Tensor, start: int, stop: int) -> slice:
    bounds = torch.searchsorted(sorted_viewer, torch.tensor([start, stop]))
    return slice(int(bounds[0]), int(bounds[1]))
