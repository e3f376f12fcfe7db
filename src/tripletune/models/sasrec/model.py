# Shape letters in this file:
#   M films, D width, H heads, L places of a window, U users, B users of a block, E rows (one like of one user)
"""SASRec: a causal transformer over the newest likes, oldest first, whose last output is the user's vector.

Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, https://arxiv.org/abs/1808.09781: the film
embedding is used for input and output, and a film's score is its product with the output at the last place. Two things
differ from the paper: positions are relative (the number of likes between two places), so that a window may begin
anywhere in a history; and normalisation comes before each sublayer. Training and the retrieval that reads the weights
compute users here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tripletune.models.training.windows import pack_newest, padded_blocks
from tripletune.threads import map_blocks

ENCODE_ROWS = 64
"""Users encoded at a time, on one thread. Every block is padded to this many rows and its full length: a product of
another shape may round differently, and a user's vector must not depend on the others in the block."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes needed to rebuild the model; stored in ``model.json``."""

    num_movies: int
    dim: int
    layers: int
    heads: int
    max_length: int


class SASRec(nn.Module):
    """Film embedding, causal attention blocks, a last normalisation; and a bias per film for its popularity."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        # zero until set by the training or by the loading of a fit
        self.embedding_MD = nn.Parameter(torch.zeros(shape.num_movies, shape.dim))
        self.bias_M = nn.Parameter(torch.zeros(shape.num_movies))
        self.blocks = nn.ModuleList(_Block(shape, generator) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.dim)

    def forward(self, row_BL: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """The output at every place, (B, L, D); a place attends to itself and those before it, so padding comes last.

        Args:
            row_BL: rows of films, int64, L <= ``max_length``.
            dropout: share of values set to zero, drawn from ``generator``; 0 except in training.
        """
        state_BLD = _drop(functional.embedding(row_BL, self.embedding_MD), dropout, generator)
        for block in self.blocks:
            state_BLD = block(state_BLD, dropout, generator)
        output_BLD: Tensor = self.norm(state_BLD)
        return output_BLD

    @torch.no_grad()
    def encode(self, user_E: Tensor, row_E: Tensor, num_viewers: int) -> Tensor:
        """User vectors (U, D) from likes as in ``pack_newest``; zeros, which score by bias alone, without any."""
        row_UL, length_U = pack_newest(user_E, row_E, num_viewers, self.shape.max_length)
        vectors_UD = self.embedding_MD.new_zeros(num_viewers, self.shape.dim)
        blocks = padded_blocks(length_U, self.shape.max_length, ENCODE_ROWS)

        def encode_block(block: int) -> Tensor:
            length, user_B = blocks[block]
            row_BL = row_UL.new_zeros(ENCODE_ROWS, length)
            have = min(length, row_UL.shape[1])
            row_BL[: user_B.numel(), :have] = row_UL[user_B, :have]
            last_B = user_B.new_zeros(ENCODE_ROWS)
            last_B[: user_B.numel()] = length_U[user_B] - 1
            return self._at(row_BL, last_B)[: user_B.numel()]

        for (_, user_B), vectors_BD in zip(blocks, map_blocks(encode_block, len(blocks)), strict=True):
            vectors_UD[user_B] = vectors_BD
        return vectors_UD

    def _at(self, row_BL: Tensor, place_B: Tensor) -> Tensor:
        """The output of ``forward`` at one place of each row, (B, D); the last block computes nothing for the rest."""
        state_BLD = functional.embedding(row_BL, self.embedding_MD)
        *before, final = cast("list[_Block]", list(self.blocks))
        for block in before:
            state_BLD = block(state_BLD, 0.0, None)
        output_BD: Tensor = self.norm(final.at(state_BLD, place_B))
        return output_BD


class _Block(nn.Module):
    """Causal attention, then a position-wise network, each with a residual connection."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        dim = shape.dim
        self.heads, self.max_length = shape.heads, shape.max_length
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.read, self.write = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        for layer in (self.read, self.write, self.widen, self.narrow):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():  # a small start: attention depends almost on distances alone, the sublayers add little
            self.read.weight[: 2 * dim] *= 0.1
            self.write.weight *= 0.3
            self.narrow.weight *= 0.3
        # heads start with memories of different lengths (Press et al., ICLR 2022), and learn a weight per distance
        memory_H = 2.0 ** torch.arange(1, 2 * shape.heads + 1, 2)
        self.distance_HL = nn.Parameter(-torch.arange(shape.max_length) / memory_H.unsqueeze(1))

    def forward(self, state_BLD: Tensor, dropout: float, generator: torch.Generator | None) -> Tensor:
        num, length, dim = state_BLD.shape
        heads = self.read(self.norms[0](state_BLD)).view(num, length, 3, self.heads, dim // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(query, key, value, attn_mask=self._bias(length))
        state_BLD = state_BLD + _drop(self.write(read.transpose(1, 2).reshape(num, length, dim)), dropout, generator)
        wide = functional.gelu(self.widen(self.norms[1](state_BLD)))
        return state_BLD + _drop(self.narrow(wide), dropout, generator)

    def at(self, state_BLD: Tensor, place_B: Tensor) -> Tensor:
        """The output of ``forward`` without dropout at one place of each row, (B, D)."""
        num, length, dim = state_BLD.shape
        normed_BLD, row_B = self.norms[0](state_BLD), torch.arange(num)
        query_BD = functional.linear(normed_BLD[row_B, place_B], self.read.weight[:dim], self.read.bias[:dim])
        known = functional.linear(normed_BLD, self.read.weight[dim:], self.read.bias[dim:])
        key, value = known.view(num, length, 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        bias_BH1L = self._bias(length)[:, place_B].transpose(0, 1).unsqueeze(2)
        query = query_BD.view(num, self.heads, 1, dim // self.heads)
        read = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias_BH1L)
        state_BD: Tensor = state_BLD[row_B, place_B] + self.write(read.reshape(num, dim))
        state_BD += self.narrow(functional.gelu(self.widen(self.norms[1](state_BD))))
        return state_BD

    def _bias(self, length: int) -> Tensor:
        """Attention bias (H, L, L) by the distance from a place to an earlier one; -inf for a later one."""
        place_L = torch.arange(length)
        distance_LL = place_L.unsqueeze(1) - place_L
        return self.distance_HL[:, distance_LL.clamp(min=0)].masked_fill(distance_LL < 0, -torch.inf)


def _drop(values: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    if not share or generator is None:
        return values
    kept = torch.empty_like(values).bernoulli_(1 - share, generator=generator)
    return values * kept / (1 - share)
