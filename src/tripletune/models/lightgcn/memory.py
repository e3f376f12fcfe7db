"""Memory estimate of a LightGCN fit: logged before it starts, and refused when too large."""

from __future__ import annotations

import math

import torch

from tripletune.config import LightGCNConfig
from tripletune.models.lightgcn.loss import BLOCK_USERS
from tripletune.models.training.interactions import Likes
from tripletune.store.meter import claim_memory

FLOAT = 4
GRAPH_BYTES_PER_LIKE = 64
"""Both directions at the peak of construction, when the edges are sorted; 16 remain."""


def memory_parts(likes: Likes, num_movies: int, settings: LightGCNConfig) -> dict[str, int]:
    """Bytes of each part of a fit at its peak."""
    num_edges, film_table = likes.user_E.numel(), num_movies * settings.dim * FLOAT
    user_table = likes.num_viewers * settings.dim * FLOAT
    num_blocks = math.ceil(min(settings.batch_viewers, likes.num_viewers) / BLOCK_USERS)
    threads = min(torch.get_num_threads(), num_blocks)
    weights = 3 * FLOAT * num_edges if settings.edge_half_life else 0
    return {
        "graph": GRAPH_BYTES_PER_LIKE * num_edges + weights,
        # the embedding, its gradient, Adam's two averages, the two exported tables of the best step, twice when saved
        "parameters": 8 * (film_table + num_movies * FLOAT),
        # for each pair of layers the sums of both sides, scaled and unscaled, and their gradients
        "activations": max(1, settings.layers // 2) * (3 * user_table + 6 * film_table)
        # each thread's block of scores and its gradient, and the blocks' gradients of the films until they are added
        + threads * 3 * BLOCK_USERS * num_movies * FLOAT
        + min(2 * threads, num_blocks) * film_table,
    }


def state_memory(likes: Likes, num_movies: int, settings: LightGCNConfig, device: torch.device) -> None:
    """Log the memory that a fit to these likes needs, part by part, and the free memory.

    Raises:
        InputError: less memory is free.
    """
    parts = memory_parts(likes, num_movies, settings)
    sizes = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
    advice = (
        "train on fewer ratings (a higher split.like)"
        if parts["graph"] > sum(parts.values()) / 2
        else "lower lightgcn.dim or lightgcn.layers"
    )
    claim_memory(
        f"LightGCN on {likes.num_viewers:,} users, {num_movies:,} films and {likes.user_E.numel():,} likes "
        f"(GiB: {sizes})",
        sum(parts.values()),
        advice,
        torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None,
    )
