# Shape letters in this file: B prompts, L tokens, H width of the language model, R rows of film vectors, D their width,
#   F film tokens of a batch
"""Embedding layer that also knows films: their vectors, projected into the language model's space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tripletune.behaviour.tokens import FIRST_FILM

PROJECTOR = "film_projector"
"""Name of the module that is trained and kept with the LoRA matrices."""


class FilmProjector(nn.Module):
    """Two layers from a film's vector to an embedding (LLaRA, section 4.1).

    Not made of ``nn.Linear``: PEFT would put LoRA matrices on them.

    Args:
        width: D.
        hidden: H.
        random: draws the weights.
    """

    def __init__(self, width: int, hidden: int, random: torch.Generator) -> None:
        super().__init__()
        self.inner_HD = nn.Parameter(torch.randn(hidden, width, generator=random))  # unit vectors: unit variance
        self.inner_bias_H = nn.Parameter(torch.zeros(hidden))
        self.outer_HH = nn.Parameter(torch.randn(hidden, hidden, generator=random) / hidden**0.5)
        self.outer_bias_H = nn.Parameter(torch.zeros(hidden))

    def forward(self, vectors_FD: Tensor) -> Tensor:
        """Embeddings of films; shape (F, H)."""
        inner_FH = functional.gelu(functional.linear(vectors_FD, self.inner_HD, self.inner_bias_H))
        return functional.linear(inner_FH, self.outer_HH, self.outer_bias_H)


class FilmEmbedding(nn.Module):
    """Embeddings of words, and of ``FIRST_FILM`` + r the projection of row r of the film vectors.

    Args:
        words: the model's own embedding layer.
        vectors_RD: film vectors; not part of the model's state.
        random: draws the projector's weights.
    """

    vectors_RD: Tensor

    def __init__(self, words: Any, vectors_RD: Tensor, random: torch.Generator) -> None:
        super().__init__()
        self.words = words
        hidden = words.weight.shape[1]
        self.film_projector = FilmProjector(vectors_RD.shape[1], hidden, random)
        self.register_buffer("vectors_RD", vectors_RD, persistent=False)
        with torch.no_grad():  # as long as a word's embedding from the first step on
            ratio = words.weight.float().std() / self.film_projector(vectors_RD[1:]).std()
            self.film_projector.outer_HH.mul_(ratio)

    @property
    def weight(self) -> nn.Parameter:
        """Of the words."""
        weight: nn.Parameter = self.words.weight
        return weight

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Embeddings (B, L, H) of token ids."""
        is_film_BL = ids_BL >= FIRST_FILM
        words_BLH: Tensor = self.words(ids_BL.masked_fill(is_film_BL, 0))
        # also without a film in the batch, so that every process has a gradient of the projector
        films_FH = self.film_projector(self.vectors_RD[ids_BL[is_film_BL] - FIRST_FILM])
        return words_BLH.index_put((is_film_BL,), films_FH.to(words_BLH.dtype))


def with_unknown(*tables: Tensor) -> Tensor:
    """Film vectors one table after the other, below a first row of zeros: ``tokens.UNKNOWN``."""
    return torch.cat([torch.zeros(1, tables[0].shape[1]), *tables])


def attach_films(model: Any, vectors_RD: Tensor, seed: int) -> None:
    """Let a causal language model read film tokens; before PEFT wraps it, with ``PROJECTOR`` in ``modules_to_save``.

    Args:
        model: of transformers.
        vectors_RD: film vectors, row ``tokens.UNKNOWN`` all zeros.
        seed: of the projector's weights.
    """
    random = torch.Generator().manual_seed(seed)
    model.set_input_embeddings(FilmEmbedding(model.get_input_embeddings(), vectors_RD, random))
