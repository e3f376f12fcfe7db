"""Directions of film vectors from their mean."""

# Shape letters in this file: M films, X columns
from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tripletune.threads import one_thread


def centre(vectors_MX: Tensor) -> Tensor:
    """Directions of vectors from their mean, of length one: what all texts share says nothing of a film.

    A text without a token, which has a zero vector, stays zero and is not part of the mean.
    """
    with one_thread():
        directions_MX = functional.normalize(vectors_MX.double(), dim=1)
        has_text_M = directions_MX.abs().sum(dim=1) > 0
        mean_X = directions_MX[has_text_M].mean(dim=0)
        centred_MX = torch.where(has_text_M.unsqueeze(1), directions_MX - mean_X, 0.0)
        return functional.normalize(centred_MX, dim=1).float().contiguous()
