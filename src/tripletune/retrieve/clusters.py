# Shape letters in this file:
#   U users, D vector width, K clusters
"""k-means on users' vectors, independent of the order of users and of the number of threads.

Initial centres are drawn as in k-means++ (Arthur & Vassilvitskii, SODA 2007), but by a hash of each user: adding or
removing a user changes an initial centre only if that user is one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tripletune.models.serving.topk import Ints
from tripletune.stable_hash import exponential
from tripletune.threads import one_thread

_ROUNDS = 100
"""Rounds at most; it ends sooner when the assignments no longer change."""


def cluster_users(vectors_UD: Tensor, users_U: Ints, num_clusters: int, seed: int) -> Ints:
    """The cluster of each user, shape (U,), numbered from 0 in the order of the initial centres.

    Args:
        vectors_UD: finite; at least one user.
        users_U: ids, ascending, so that sums run in one order.
        num_clusters: K; with fewer different vectors the last clusters are empty.
        seed: of the hash.
    """
    with one_thread():
        points_UD = vectors_UD.double()
        centres_KD = points_UD[_beginnings(points_UD, users_U, num_clusters, seed)]
        nearest_U = _nearest(points_UD, centres_KD)
        for _ in range(_ROUNDS):
            size_K = torch.bincount(nearest_U, minlength=num_clusters)
            sums_KD = torch.zeros_like(centres_KD).index_add_(0, nearest_U, points_UD)
            means_KD = sums_KD / size_K.clamp(min=1).unsqueeze(1)
            centres_KD = torch.where(size_K.unsqueeze(1) > 0, means_KD, centres_KD)  # an empty one stays where it is
            before_U, nearest_U = nearest_U, _nearest(points_UD, centres_KD)
            if torch.equal(before_U, nearest_U):
                break
    return nearest_U.numpy()


def _beginnings(points_UD: Tensor, users_U: Ints, num_clusters: int, seed: int) -> list[int]:
    """Rows drawn one after another, each with probability proportional to the squared distance from those before."""
    weight_U, chosen = torch.ones(len(points_UD), dtype=torch.float64), list[int]()
    for number in range(num_clusters):
        arrival_U = torch.from_numpy(exponential(users_U, number, seed)) / weight_U
        chosen.append(int(arrival_U.argmin()))
        distance_U = (points_UD - points_UD[chosen[-1]]).square().sum(dim=1)
        weight_U = distance_U if number == 0 else torch.minimum(weight_U, distance_U)
    return chosen


def _nearest(points_UD: Tensor, centres_KD: Tensor) -> Tensor:
    # a user's own squared length is the same for every centre
    return (centres_KD.square().sum(dim=1) - 2 * points_UD @ centres_KD.T).argmin(dim=1)
