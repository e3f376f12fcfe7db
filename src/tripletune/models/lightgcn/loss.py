"""Losses of LightGCN: a softmax over all films or a sample of them, or the published pairwise loss.

Each is a weighted sum over (user, film) rows.
"""

# Shape letters in this file: B users, M films, D width, R target rows, K rows of known likes, V users of a block,
#   C films of a sample ("known": given to the model as input)
from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tripletune.models.message_passing.fixed_order import product, total
from tripletune.models.message_passing.gather import take_rows
from tripletune.threads import map_blocks

BLOCK_USERS = 128
"""Users whose scores of all films each thread holds at once: 128 x 87,585 floats are 45 MB."""
GPU_SCORES = 1 << 27
"""Scores of a block on a GPU (512 MiB), where a small block would be over sooner than it is begun."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Target films of the users of a batch, with weights. All rows are sorted by user.

    ``known_*``: likes in the user's vector; they are masked in the softmax and are never negatives.
    """

    user_R: Tensor
    movie_R: Tensor
    weight_R: Tensor
    known_user_K: Tensor
    known_movie_K: Tensor

    def to(self, device: torch.device) -> Targets:
        """The rows on another device."""
        return Targets(*(getattr(self, column.name).to(device) for column in fields(self)))

    def of_block(self, rows: slice, known: slice, first: int) -> Targets:
        """Some rows, with users counted from ``first``."""
        return Targets(
            self.user_R[rows] - first,
            self.movie_R[rows],
            self.weight_R[rows],
            self.known_user_K[known] - first,
            self.known_movie_K[known],
        )


@dataclass(frozen=True, slots=True)
class FilmSample:
    """Sample of films for one step's softmax, ascending, with a correction of each film's score.

    All targets of the batch are in it, uncorrected. The other films are sampled uniformly; each stands for
    ``1 / its chance`` of them, and the log of that is added to its score (importance sampling, Bengio & Senecal, IEEE
    TNN 2008; as the log-q correction of Yi et al., RecSys 2019). So the sum in the softmax is right on average, for
    every user.
    """

    movie_C: Tensor
    correction_C: Tensor

    @classmethod
    def draw(cls, target_movie_R: Tensor, num_movies: int, size: int, generator: torch.Generator) -> FilmSample:
        """Draw ``size`` films in addition to the targets; all others when there are no more than that."""
        is_in_M = torch.zeros(num_movies, dtype=torch.bool)
        is_in_M[target_movie_R] = True
        others = (~is_in_M).nonzero().squeeze(1)
        drawn = others[torch.randperm(others.numel(), generator=generator)[:size]]
        correction_M = torch.zeros(num_movies)
        correction_M[drawn] = math.log(others.numel() / max(drawn.numel(), 1)) if others.numel() else 0.0
        is_in_M[drawn] = True
        movie_C = is_in_M.nonzero().squeeze(1)
        return cls(movie_C, correction_M[movie_C])

    def columns(self, targets: Targets, num_movies: int) -> Targets:
        """The rows with places in the sample for films; known likes outside the sample are dropped."""
        place_M = torch.full((num_movies,), -1)
        place_M[self.movie_C] = torch.arange(self.movie_C.numel())
        known_K = place_M[targets.known_movie_K]
        kept_K = known_K >= 0
        return replace(
            targets,
            movie_R=place_M[targets.movie_R],
            known_user_K=targets.known_user_K[kept_K],
            known_movie_K=known_K[kept_K],
        )

    def to(self, device: torch.device) -> FilmSample:
        """The sample on another device."""
        return FilmSample(self.movie_C.to(device), self.correction_C.to(device))


class _SoftmaxOverFilms(torch.autograd.Function):
    """Softmax loss with gradients computed in the forward pass, block by block: the B x M scores are never held.

    Ten times faster than autograd over ``log_softmax`` of the whole matrix, because blocks stay in the cache. On a CPU
    each block runs on one thread, and the blocks' sums are added up in their order.
    """

    @staticmethod
    def forward(ctx: Any, users_BD: Tensor, movies_MD: Tensor, bias_M: Tensor, targets: Targets) -> Tensor:
        """The sum over the batch's likes of ``-weight * log softmax`` of their films; a scalar.

        Args:
            users_BD, movies_MD: vectors of the batch's users and of the films ranked.
            bias_M: added to every user's scores.
            targets: target likes and masked likes, both sorted by user.
        """
        on_cpu = users_BD.device.type == "cpu"
        bounds = _bounds(users_BD.shape[0], BLOCK_USERS if on_cpu else max(BLOCK_USERS, GPU_SCORES // len(bias_M)))
        rows, known = _rows(targets.user_R, bounds), _rows(targets.known_user_K, bounds)
        grad_users_BD = torch.empty_like(users_BD)

        def compute(block: int) -> tuple[Tensor, Tensor, Tensor]:
            viewers = slice(bounds[block], bounds[block + 1])
            of_block = targets.of_block(rows[block], known[block], viewers.start)
            parts = _softmax_block(users_BD[viewers], movies_MD, bias_M, of_block)
            grad_users_BD[viewers] = parts[1]
            return parts[0], *parts[2:]

        num = len(bounds) - 1
        computed = map_blocks(compute, num) if on_cpu else map(compute, range(num))
        sums = users_BD.new_zeros(()), torch.zeros_like(movies_MD), torch.zeros_like(bias_M)
        for parts in computed:
            for sum_, part in zip(sums, parts, strict=True):
                sum_ += part
        loss, *grads = sums
        ctx.save_for_backward(grad_users_BD, *grads)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        grad_users_BD, grad_movies_MD, grad_bias_M = ctx.saved_tensors
        (grad,) = grads
        return grad * grad_users_BD, grad * grad_movies_MD, grad * grad_bias_M, None


def _softmax_block(
    users_VD: Tensor, movies_MD: Tensor, bias_M: Tensor, targets: Targets
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A block's loss, and its gradients with respect to the users, the films and the bias."""
    user_R, movie_R, weight_R = targets.user_R, targets.movie_R, targets.weight_R.to(users_VD.dtype)
    scores_VM = torch.addmm(bias_M, users_VD, movies_MD.T)
    scores_VM[targets.known_user_K, targets.known_movie_K] = -torch.inf
    wanted_R, top_V = scores_VM[user_R, movie_R], scores_VM.amax(dim=1)
    mass_VM = scores_VM.sub_(top_V.unsqueeze(1)).exp_()  # in place: this matrix takes most of the time
    sum_V = mass_VM.sum(dim=1)
    loss = (weight_R * ((top_V + sum_V.log())[user_R] - wanted_R)).sum()
    total_V = weight_R.new_zeros(len(users_VD)).index_add_(0, user_R, weight_R)
    grad_VM = mass_VM.mul_((total_V / sum_V).unsqueeze(1))
    grad_VM.view(-1).index_add_(0, user_R * movies_MD.shape[0] + movie_R, -weight_R)
    return loss, product(grad_VM, movies_MD), grad_VM.T @ users_VD, grad_VM.sum(dim=0)


def softmax_loss(
    users_BD: Tensor, movies_MD: Tensor, bias_M: Tensor, targets: Targets, sample: FilmSample | None = None
) -> Tensor:
    """``- sum over rows of weight * log softmax(<user, film> + bias)``, known likes masked in the softmax.

    Args:
        targets: no row may be a known like of its user. With a sample: its ``columns``.
        sample: the films of the softmax; None: all.

    Returns:
        A scalar, differentiable in the first three arguments.
    """
    if sample is not None:
        movies_MD = take_rows(movies_MD, sample.movie_C)
        bias_M = take_rows(bias_M, sample.movie_C) + sample.correction_C.to(bias_M.dtype)
    if users_BD.shape[0] == 1:  # see _bounds; a padded user without a target adds nothing
        users_BD = functional.pad(users_BD, (0, 0, 0, 1))
    loss: Tensor = _SoftmaxOverFilms.apply(users_BD, movies_MD, bias_M, targets)  # type: ignore[no-untyped-call]
    return loss


def bpr_loss(users_BD: Tensor, movies_MD: Tensor, targets: Targets, negative_R: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle et al., UAI 2009; LightGCN equation 15), one negative per target row.

    Returns:
        ``- sum over rows of weight * log sigmoid(score of the target - score of the negative)``, a scalar.
    """
    users_RD = take_rows(users_BD, targets.user_R)
    difference_RD = take_rows(movies_MD, targets.movie_R) - take_rows(movies_MD, negative_R)
    margin_R = (users_RD * difference_RD).sum(dim=1)
    return -total(targets.weight_R.to(margin_R.dtype) * functional.logsigmoid(margin_R))


def draw_negatives(targets: Targets, num_movies: int, generator: torch.Generator) -> Tensor:
    """Draw a film for each target row, uniform over those that are neither a target nor a known like of its user."""
    target_R = targets.user_R * num_movies + targets.movie_R
    known_K = targets.known_user_K * num_movies + targets.known_movie_K
    liked = torch.unique_consecutive(torch.cat([target_R, known_K]).sort().values)
    return draw_unliked(targets.user_R, liked, num_movies, generator)


def draw_unliked(user_R: Tensor, liked: Tensor, num_movies: int, generator: torch.Generator) -> Tensor:
    """Draw a film per row, uniform over those whose ``user * num_movies + film`` is not in ``liked`` (ascending).

    The j-th unliked film of a user is found by counting the liked ones below it, so nothing is drawn twice.

    Returns:
        int64, shape (R,).

    Raises:
        ValueError: a user of the rows likes every film.
    """
    liked_user = liked // num_movies
    first_R, end_R = torch.searchsorted(liked_user, user_R), torch.searchsorted(liked_user, user_R, right=True)
    num_unliked_R = num_movies - (end_R - first_R)
    if bool((num_unliked_R == 0).any()):
        raise ValueError("a user likes every film: there is no negative to draw")
    wish_R = (torch.rand(user_R.shape, generator=generator, dtype=torch.float64) * num_unliked_R).long()
    # liked film number k (from 0) has (film - k) unliked ones before it: the drawn film comes after all with <= wish
    place = torch.arange(liked.numel()) - torch.searchsorted(liked_user, liked_user)
    gaps = liked - place  # ascending within a user, and across users since a user has at least one unliked film
    behind_R = torch.searchsorted(gaps, user_R * num_movies + wish_R, right=True)
    return wish_R + behind_R - first_R


def _bounds(num_viewers: int, size: int) -> list[int]:
    """Bounds of blocks of ``size`` users; none has a single user, whose product the library computes in another way."""
    starts = list(range(0, num_viewers, size))
    if len(starts) > 1 and num_viewers - starts[-1] == 1:
        starts.pop()
    return [*starts, num_viewers]


def _rows(sorted_user: Tensor, bounds: list[int]) -> list[slice]:
    """The rows of the users from each bound to the next."""
    wanted = torch.tensor(bounds, device=sorted_user.device)
    return [slice(first, last) for first, last in itertools.pairwise(torch.searchsorted(sorted_user, wanted).tolist())]
