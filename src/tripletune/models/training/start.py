"""Initialisation of a sequence model's film vectors by singular vectors of the training likes.

From random vectors the transformer must first learn which films go together, for which some hundred users are too few:
on ml-latest-small valid ndcg_at_10 reaches .055 at most from random vectors, and .07 or more from these.
"""

# Shape letters in this file: M films, U users, Q vectors of the subspace, D width
from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from tripletune.models.training.interactions import Likes
from tripletune.threads import one_thread

SPREAD = 0.1
"""Root mean square of the vectors' entries, as in LightGCN."""
NOISE = 0.3
"""Random part of it, so that films without likes and dimensions beyond the rank are not all equal."""
OVERSAMPLING = 16
ROUNDS = 6
"""Rounds of subspace iteration; the first D directions of likes converge long before."""


def film_factors(likes: Likes, num_movies: int, dim: int, generator: torch.Generator) -> Tensor:
    """Right singular vectors of the likes, times the root of their singular values; a little noise is added.

    A like counts ``1 / sqrt(likes of the user * likes of the film)``, so that popularity is not the first direction.
    By randomised subspace iteration (Halko, Martinsson & Tropp, SIAM Review 2011), in float64.

    Args:
        likes: of one fit.
        dim: directions; those beyond the rank of the likes are noise alone.

    Returns:
        (M, D) float32, with the same bytes for any number of threads: sums in sparse products have one order, and the
        rest runs on one thread.
    """
    matrix = _normalised(likes, num_movies)
    size = min(dim + OVERSAMPLING, *matrix.shape)
    noise_MD = torch.randn(num_movies, dim, generator=generator)
    start_MQ = torch.randn(num_movies, size, generator=generator, dtype=torch.float64)
    with one_thread():
        basis_MQ = _orthonormal(start_MQ)
        for _ in range(ROUNDS):
            basis_MQ = _orthonormal(torch.from_numpy(matrix.T @ (matrix @ basis_MQ.numpy())))
        seen_UQ = torch.from_numpy(matrix @ basis_MQ.numpy())
        squared_Q, turn_QQ = torch.linalg.eigh(seen_UQ.T @ seen_UQ)
        order_D = squared_Q.argsort(descending=True)[:dim]
        found_MD = (basis_MQ @ turn_QQ[:, order_D]) * squared_Q[order_D].clamp(min=0).pow(0.25)
        factors_MD = torch.zeros(num_movies, dim)
        factors_MD[:, : found_MD.shape[1]] = found_MD.float()
        norm_M = factors_MD.norm(dim=1)
        mean = norm_M[norm_M > 0].mean() / dim**0.5
    begin_MD: Tensor = SPREAD * (factors_MD / mean + NOISE * noise_MD)
    return begin_MD


def _normalised(likes: Likes, num_movies: int) -> sparse.csr_array:
    user_E, movie_E = likes.user_E.numpy(), likes.movie_E.numpy()
    count_U, count_M = likes.counts().numpy(), np.bincount(movie_E, minlength=num_movies)
    value_E = 1 / np.sqrt(count_U[user_E] * count_M[movie_E])
    return sparse.csr_array((value_E, (user_E, movie_E)), shape=(likes.num_viewers, num_movies))


def _orthonormal(columns_MQ: Tensor) -> Tensor:
    basis_MQ: Tensor = torch.linalg.qr(columns_MQ)[0]
    return basis_MQ
