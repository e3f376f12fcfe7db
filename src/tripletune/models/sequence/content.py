"""What a film's text and its place in the knowledge graph add to its vector, so that a film without ratings has one.

A film's vector is its own (that of its id) plus a linear projection of its content. In training the own vectors of a
random share of the films are dropped in each step (as in DropoutNet: Volkovs, Yu & Poutanen, NeurIPS 2017, equation 5),
so that the projection alone must rank them; a film that the fit has no rating of is always without. Such a film's bias
is projected from its content as well.
"""

# Shape letters in this file: M films, X columns of content, D width, C films of a step
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tripletune.models.message_passing.fixed_order import product
from tripletune.models.message_passing.gather import take_rows
from tripletune.models.rgat.serve import load_rgat
from tripletune.models.serving.catalogue import Catalogue
from tripletune.models.text.directions import centre
from tripletune.models.text.serve import read_text_vectors
from tripletune.threads import one_thread

NEVER = -1e4
"""Bias in training of a film without ratings: it was nobody's choice, so not choosing it says nothing about it."""
SHRINK = 3.0
"""Ratings at which a film's start is half its own vector and half the projection."""
RIDGE = 0.1
"""Penalty of the start's projection, as a share of the mean diagonal."""


class FilmContent(nn.Module):
    """The projections of one fit, and which own vectors count in the present step."""

    content_MX: Tensor
    is_known_M: Tensor
    own_M: Tensor

    def __init__(self, content_MX: Tensor, rated_M: Tensor, dim: int, *, tied: bool) -> None:
        """
        Args:
            content_MX: rows of length one or zero, float32.
            rated_M: ratings of each film in the fit.
            dim: width D.
            tied: whether films are scored by the vectors by which they are read.
        """
        super().__init__()
        self.register_buffer("content_MX", content_MX, persistent=False)
        self.register_buffer("is_known_M", rated_M > 0, persistent=False)
        self.register_buffer("own_M", (rated_M > 0).float(), persistent=False)
        width = content_MX.shape[1]
        self.read_XD = nn.Parameter(torch.zeros(width, dim))
        self.score_XD = None if tied else nn.Parameter(torch.zeros(width, dim))
        self.bias_X = nn.Parameter(torch.zeros(width))
        self.base = nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def start(self, own_MD: Tensor, bias_M: Tensor, rated_M: Tensor) -> Tensor:
        """Set the projections by ridge regression on the vectors and biases of rated films.

        Returns:
            What is left to the own vectors, (M, D): the rest of the regression, the less the fewer ratings a film has.
        """
        trust_M1 = (rated_M / (rated_M + SHRINK)).unsqueeze(1).double()
        content_MX, wanted = self.content_MX.double(), torch.cat([own_MD, bias_M.unsqueeze(1)], dim=1).double()
        with one_thread():
            base = (trust_M1 * wanted[:, -1:]).sum() / trust_M1.sum().clamp(min=1)
            wanted[:, -1] -= base
            gram_XX = content_MX.T @ (trust_M1 * content_MX)
            ridge = RIDGE * gram_XX.diagonal().mean().clamp(min=1e-6)
            found = torch.linalg.solve(
                gram_XX + ridge * torch.eye(len(gram_XX), dtype=torch.float64), content_MX.T @ (trust_M1 * wanted)
            )
            rest_MD: Tensor = trust_M1 * (own_MD.double() - content_MX @ found[:, :-1])
        self.read_XD.copy_(found[:, :-1])
        if self.score_XD is not None:
            self.score_XD.copy_(found[:, :-1])
        self.bias_X.copy_(found[:, -1])
        self.base.fill_(float(base))
        return rest_MD.float()

    def drop(self, share: float, generator: torch.Generator) -> None:
        """Draw the films whose own vectors count in the next step."""
        drawn_M = torch.rand(self.is_known_M.shape, generator=generator) >= share
        self.own_M = (self.is_known_M & drawn_M.to(self.is_known_M.device)).float()

    def vectors(self, own_CD: Tensor, movie_C: Tensor, *, scored: bool) -> Tensor:
        """The vectors of some films, from their own ones; as they are scored, or as they are read."""
        weight_XD = self.score_XD if scored and self.score_XD is not None else self.read_XD
        kept_C1 = take_rows(self.own_M, movie_C).unsqueeze(1)
        return own_CD * kept_C1 + take_rows(self.content_MX, movie_C) @ weight_XD

    def biases(self, own_C: Tensor, movie_C: Tensor) -> Tensor:
        """The biases of some films, from their own ones: projected for a film whose own vector does not count."""
        kept_C = take_rows(self.own_M, movie_C)
        projected_C = take_rows(self.content_MX, movie_C) @ self.bias_X + self.base
        never_C = torch.where(take_rows(self.is_known_M, movie_C), 0.0, NEVER)
        return torch.where(kept_C > 0, own_C, projected_C + never_C)

    @torch.no_grad()
    def whole(self, own_MD: Tensor, *, scored: bool) -> Tensor:
        """The vectors of all films outside training, (M, D)."""
        weight_XD = self.score_XD if scored and self.score_XD is not None else self.read_XD
        return own_MD * self.is_known_M.unsqueeze(1) + product(self.content_MX, weight_XD)

    @torch.no_grad()
    def whole_bias(self, own_M: Tensor) -> Tensor:
        """The biases of all films outside training, (M,)."""
        projected_M = product(self.content_MX, self.bias_X.unsqueeze(1)).squeeze(1) + self.base
        return torch.where(self.is_known_M, own_M, projected_M)


def read_content(folders: Mapping[str, Path], movie_ids_M: npt.NDArray[np.int32], fit: str) -> Tensor | None:
    """The content of a fit's films: per folder, rows of length one, or zero for a film that the folder lacks.

    Args:
        folders: by kind of content, ``text`` or ``graph`` (R-GAT's).
        movie_ids_M: the films.
        fit: ``a`` or ``b``; R-GAT's vectors are those of the same fit, which has seen the same likes.

    Returns:
        (M, X) float32; None without folders.

    Raises:
        InputError: a file is missing, damaged or not finite, or a model has other films.
    """
    parts = []
    for kind, folder in folders.items():
        if kind == "text":
            catalogue = Catalogue(movie_ids_M, seed=0)
            vectors_MX = read_text_vectors(folder, catalogue)
        else:
            rgat = load_rgat(folder, 0, (fit,))[fit]
            catalogue, vectors_MX = rgat.catalogue, centre(rgat.pool_vectors_MD)
        column_M = torch.from_numpy(catalogue.columns(movie_ids_M))
        parts.append(torch.where((column_M >= 0).unsqueeze(1), vectors_MX[column_M.clamp(min=0)], 0.0))
    return torch.cat(parts, dim=1) if parts else None
