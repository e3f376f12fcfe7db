# Shape letters in this file: V users of the fit, M films, N neighbours, B films of one block, E likes
"""Fit item-kNN (Sarwar et al., WWW 2001): for every film, the films that the same users liked.

similarity(i, j) = users who liked both / (sqrt(users who liked i * users who liked j) + shrinkage)
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import save_file
from scipy import sparse
from torch import Tensor

from tripletune.config import Section
from tripletune.models.serving.topk import Floats, Ints, Ragged, top_columns
from tripletune.models.training.interactions import Likes, read_interactions
from tripletune.models.training.loop import write_interactions
from tripletune.store.files import write_atomically
from tripletune.store.paths import Facts


class Settings(Section):
    """Section ``[models.itemknn]``."""

    neighbours: Annotated[int, Field(ge=1)] = 100
    """Films kept for every film, the most similar ones."""
    shrinkage: Annotated[float, Field(ge=0.0)] = 20.0
    """Draws similarities that rest on few likes towards 0."""


def train(split: Path, out: Path, settings: Settings, seed: int) -> Facts:
    """Fit both fits on a split and write the stage's files.

    Args:
        split: output of the split stage.
        out: work folder; gets ``fit_a.safetensors`` and ``fit_b.safetensors`` (``neighbours`` and ``similarities``
            (M, N), ``likes`` (M,)), ``movies.parquet``, ``trained_on.parquet``.
        settings: section ``[models.itemknn]``.
        seed: of the run; nothing is drawn here.

    Raises:
        InputError: the split holds nothing to fit to.
    """
    interactions = read_interactions(split)
    for fit, likes in interactions.fits.items():
        count_M = np.bincount(likes.movie_E.numpy(), minlength=interactions.num_movies)
        neighbour_MN, similarity_MN = nearest_films(likes, count_M, settings)
        tensors = {
            "neighbours": torch.from_numpy(neighbour_MN),
            "similarities": torch.from_numpy(similarity_MN),
            "likes": torch.from_numpy(count_M).float(),
        }
        write_atomically(out / f"fit_{fit}.safetensors", functools.partial(save_file, tensors))
    write_interactions(out, interactions)
    return {
        "movies": interactions.num_movies,
        "likes": {fit: likes.movie_E.numel() for fit, likes in interactions.fits.items()},
    }


def nearest_films(likes: Likes, count_M: Ints, settings: Settings) -> tuple[Ints, Floats]:
    """The most similar films of each film (M, N), best first, and their similarities; never the film itself."""
    num_movies = len(count_M)
    places_E = likes.user_E.numpy(), likes.movie_E.numpy()
    likes_VM = sparse.csr_array((np.ones(len(places_E[0])), places_E), shape=(likes.num_viewers, num_movies))
    likes_MV = likes_VM.T.tocsr()

    def similarity_block(start: int, stop: int) -> Tensor:
        both_BM = (likes_MV[start:stop] @ likes_VM).toarray()
        norm_BM = np.sqrt(count_M[start:stop, None] * count_M) + settings.shrinkage
        return torch.from_numpy(both_BM / np.maximum(norm_BM, 1.0)).float()  # below 1 only where nobody liked one

    itself = Ragged(np.arange(num_movies + 1), np.arange(num_movies))
    return top_columns(similarity_block, num_movies, itself, min(settings.neighbours, num_movies - 1))
