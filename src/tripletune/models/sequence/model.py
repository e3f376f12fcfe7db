# Shape letters in this file:
#   M films, D width, H heads, B users of a block, L places of a window, T buckets of time, R levels of stars,
#   C films of a step
"""A causal transformer over a user's ratings, oldest first; the output at the last place is the user's vector.

An event is the film, its stars, and the time since the event before. Attention has a bias per head by the number of
events and by the time between two places (HSTU: Zhai et al., ICML 2024, https://arxiv.org/abs/2402.17152, equation 2).
Two blocks: ``ligr`` (pre-normalised softmax attention and SwiGLU, each behind a gate: Borisyuk et al., LiGR, 2025,
https://arxiv.org/abs/2502.03417, as in eSASRec, https://arxiv.org/abs/2508.06450) and ``hstu`` (attention by SiLU
without a softmax, gated, no second layer).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

TIME_BUCKETS = 32
"""Bucket ``t`` holds ``2 ** t - 1`` seconds and more, below ``2 ** (t + 1) - 1``; the last begins at 68 years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes and parts needed to rebuild the model; stored in ``model.json``."""

    num_movies: int
    num_levels: int
    dim: int
    layers: int
    heads: int
    max_length: int
    block: Literal["ligr", "hstu"]
    stars: bool
    time: bool
    positions: bool
    tied: bool
    temperature: float
    """0: scores are plain products; else cosines divided by this."""
    request_time: bool
    """Whether every place reads when the next film is asked for."""


@dataclass(frozen=True, slots=True)
class Window:
    """Events of the users of a block, oldest first, with padding after the last."""

    movie_BL: Tensor
    """Row of the films that are passed in, int64; 0 in padding."""
    level_BL: Tensor
    """Level of the stars, int64, 0 where unknown and in padding."""
    time_BL: Tensor
    """Seconds, int64; in padding, that of the last event. A place looks back from its own time, not from that of the
    request, which would tell that the answer stands on the page that was rated last."""
    asked_BL: Tensor | None = None
    """Seconds at which the film after each place is asked for, int64; given where the model reads it."""

    def apply(self, function: Callable[[Tensor], Tensor]) -> Window:
        """A function of every part."""
        asked_BL = None if self.asked_BL is None else function(self.asked_BL)
        return Window(function(self.movie_BL), function(self.level_BL), function(self.time_BL), asked_BL)

    def to(self, device: torch.device) -> Window:
        """The window on another device."""
        return self.apply(lambda part: part.to(device))


def time_bucket(seconds: Tensor) -> Tensor:
    """Bucket of a time that passed, int64; a negative one counts as none."""
    # in whole numbers: on some processor a floating-point logarithm may round up to the next bucket
    bounds = 2 ** torch.arange(1, TIME_BUCKETS, device=seconds.device) - 1
    return torch.bucketize(seconds, bounds, right=True)


class EventModel(nn.Module):
    """Film, star and time vectors, attention blocks, a last normalisation; and a bias per film for its popularity."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        # zero until set by the training or by the loading of a fit
        self.embedding_MD = nn.Parameter(torch.zeros(shape.num_movies, shape.dim))
        self.output_MD = None if shape.tied else nn.Parameter(torch.zeros(shape.num_movies, shape.dim))
        self.bias_M = nn.Parameter(torch.zeros(shape.num_movies))
        self.level_RD = nn.Parameter(torch.zeros(shape.num_levels + 1, shape.dim)) if shape.stars else None
        # the last row is that of the first event, which has none before it
        self.gap_TD = nn.Parameter(torch.zeros(TIME_BUCKETS + 1, shape.dim)) if shape.time else None
        self.request_TD = nn.Parameter(torch.zeros(TIME_BUCKETS, shape.dim)) if shape.request_time else None
        block = {"ligr": LigrBlock, "hstu": HstuBlock}[shape.block]
        self.blocks = nn.ModuleList(block(shape, generator) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.dim)

    @property
    def scored_MD(self) -> Tensor:
        """The table of the vectors by which films are scored."""
        table_MD: Tensor = self.embedding_MD if self.output_MD is None else self.output_MD
        return table_MD

    def targets(self, scored_CD: Tensor) -> Tensor:
        """What the output is multiplied with: rows of ``scored_MD``, or their directions over the temperature."""
        return functional.normalize(scored_CD, dim=1) / self.shape.temperature if self.shape.temperature else scored_CD

    def forward(
        self,
        films_CD: Tensor,
        window: Window,
        last_B: Tensor | None = None,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The output at every place (B, L, D), or at one place of each row (B, D); no place sees a later one.

        Args:
            films_CD: vectors of the films of the window, as they are read.
            window: L <= ``max_length``; with ``asked_BL`` where the model reads the time of the request.
            last_B: place of each row for which alone the last block computes.
            dropout: share of values set to zero, drawn from ``generator``; 0 except in training.
        """
        state_BLD = functional.embedding(window.movie_BL, films_CD)
        if self.level_RD is not None:
            state_BLD = state_BLD + functional.embedding(window.level_BL, self.level_RD)
        if self.gap_TD is not None:
            gap_BL = time_bucket(window.time_BL.diff(dim=1))
            gap_BL = functional.pad(gap_BL, (1, 0), value=TIME_BUCKETS)
            state_BLD = state_BLD + functional.embedding(gap_BL, self.gap_TD)
        seen_from_BL = window.time_BL
        if self.request_TD is not None:
            assert window.asked_BL is not None
            seen_from_BL = window.asked_BL
            state_BLD = state_BLD + functional.embedding(time_bucket(seen_from_BL - window.time_BL), self.request_TD)
        state_BLD = _drop(state_BLD, dropout, generator)
        ago_BLL = None
        if self.shape.time:
            ago_BLL = time_bucket(seen_from_BL.unsqueeze(2) - window.time_BL.unsqueeze(1))
        blocks = cast("list[_Block]", list(self.blocks))
        for number, block in enumerate(blocks):
            is_last = last_B is not None and number == len(blocks) - 1
            state_BLD = block(state_BLD, ago_BLL, last_B if is_last else None, dropout, generator)
        output: Tensor = self.norm(state_BLD if last_B is None else state_BLD.squeeze(1))
        return functional.normalize(output, dim=-1) if self.shape.temperature else output


class _Block(nn.Module):
    """What both blocks share: the attention biases by distance and by time."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        # heads start with memories of different lengths (Press et al., ICLR 2022), and learn a weight per distance
        memory_H = 2.0 ** torch.arange(1, 2 * shape.heads + 1, 2)
        distance_HL = -torch.arange(shape.max_length) / memory_H.unsqueeze(1)
        self.distance_HL = nn.Parameter(distance_HL) if shape.positions else None
        self.time_TH = nn.Parameter(torch.zeros(TIME_BUCKETS, shape.heads)) if shape.time else None

    def bias(self, ago_BLL: Tensor | None, length: int, last_B: Tensor | None, like: Tensor, later: float) -> Tensor:
        """Attention bias (B or 1, H, L, L), ``later`` at later places; one query with ``last_B``."""
        place_L = torch.arange(length, device=like.device)
        query_BL = place_L.unsqueeze(0) if last_B is None else last_B.unsqueeze(1)
        distance_BLL = query_BL.unsqueeze(2) - place_L
        bias = like.new_zeros(1, self.heads, 1, 1)
        if self.distance_HL is not None:
            bias = bias + self.distance_HL[:, distance_BLL.clamp(min=0)].transpose(0, 1)
        # before the times are added, while it has one row for all users where all places ask
        bias = torch.where((distance_BLL < 0).unsqueeze(1), later, bias)
        if self.time_TH is not None and ago_BLL is not None:
            if last_B is not None:
                ago_BLL = ago_BLL[torch.arange(len(last_B), device=like.device), last_B].unsqueeze(1)
            bias = bias + _look_up(self.time_TH, ago_BLL)
        return bias

    def split_heads(self, values_BLD: Tensor) -> Tensor:
        """(B, L, D) as (B, H, L, D / H)."""
        num, length, dim = values_BLD.shape
        return values_BLD.view(num, length, self.heads, dim // self.heads).transpose(1, 2)

    def forward(
        self,
        state_BLD: Tensor,
        ago_BLL: Tensor | None,
        last_B: Tensor | None,
        dropout: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The block's output at every place, or (B, 1, D) at ``last_B``."""
        raise NotImplementedError


class LigrBlock(_Block):
    """Softmax attention, then SwiGLU, both normalised before, gated, and added."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__(shape)
        dim = shape.dim
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.query, self.known, self.write = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(2 * dim, dim)
        self.gates = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        _initialise(self, generator)
        with torch.no_grad():  # a small start: attention depends almost on distances alone, the sublayers add little
            self.query.weight *= 0.1
            self.known.weight[:dim] *= 0.1
            self.write.weight *= 0.3
            self.narrow.weight *= 0.3

    def forward(
        self,
        state_BLD: Tensor,
        ago_BLL: Tensor | None,
        last_B: Tensor | None,
        dropout: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """As in ``_Block``."""
        normed_BLD = self.norms[0](state_BLD)
        from_BLD, state = _at(normed_BLD, last_B), _at(state_BLD, last_B)
        key, value = (self.split_heads(part) for part in self.known(normed_BLD).chunk(2, dim=2))
        bias = self.bias(ago_BLL, normed_BLD.shape[1], last_B, normed_BLD, -torch.inf)
        query = self.split_heads(self.query(from_BLD))
        # by hand: with a learned bias, the library looks for rows that see no place; here every place sees itself
        weight = torch.softmax((query / math.sqrt(query.shape[3])) @ key.transpose(2, 3) + bias, dim=-1)
        read = weight @ value
        written = self.write(read.transpose(1, 2).flatten(2)) * _gate(self.gates[0], from_BLD)
        state = state + _drop(written, dropout, generator)
        normed = self.norms[1](state)
        wide, open_ = self.widen(normed).chunk(2, dim=-1)
        narrow = self.narrow(wide * functional.silu(open_)) * _gate(self.gates[1], normed)
        return state + _drop(narrow, dropout, generator)


class HstuBlock(_Block):
    """Attention by SiLU in place of softmax, normalised, gated by a second projection, and added."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__(shape)
        dim = shape.dim
        self.max_length = shape.max_length
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.query, self.known = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim)
        self.write = nn.Linear(dim, dim)
        _initialise(self, generator)

    def forward(
        self,
        state_BLD: Tensor,
        ago_BLL: Tensor | None,
        last_B: Tensor | None,
        dropout: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """As in ``_Block``."""
        normed_BLD = self.norms[0](state_BLD)
        query, gate = functional.silu(self.query(_at(normed_BLD, last_B))).chunk(2, dim=2)
        key, value = (self.split_heads(part) for part in functional.silu(self.known(normed_BLD)).chunk(2, dim=2))
        # silu of so low a number is zero, and so is its gradient
        bias = self.bias(ago_BLL, normed_BLD.shape[1], last_B, normed_BLD, -1e4)
        query = self.split_heads(query)
        weight = functional.silu(query @ key.transpose(2, 3) / math.sqrt(query.shape[3]) + bias)
        read = (weight / self.max_length) @ value
        written = self.write(self.norms[1](read.transpose(1, 2).flatten(2)) * gate)
        return _at(state_BLD, last_B) + _drop(written, dropout, generator)


class _LookUp(torch.autograd.Function):
    """A table's entries in a few rows and columns, many times each: its gradient counts, which adds in one order."""

    @staticmethod
    def forward(ctx: Any, table_TH: Tensor, row_BLL: Tensor) -> Tensor:
        ctx.save_for_backward(row_BLL)
        ctx.shape = table_TH.shape
        return table_TH.T[:, row_BLL].transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad_BHLL: Tensor) -> tuple[Tensor, None]:
        (row_BLL,) = ctx.saved_tensors
        row_E, (num_rows, num_columns) = row_BLL.flatten(), ctx.shape
        sums = [
            torch.bincount(row_E, weights=grad_BHLL[:, column].flatten(), minlength=num_rows)
            for column in range(num_columns)
        ]
        return torch.stack(sums, dim=1).to(grad_BHLL.dtype), None


def _look_up(table_TH: Tensor, row_BLL: Tensor) -> Tensor:
    """``table[row]`` as (B, H, L, L)."""
    found_BHLL: Tensor = _LookUp.apply(table_TH, row_BLL)  # type: ignore[no-untyped-call]
    return found_BHLL


def _initialise(block: nn.Module, generator: torch.Generator) -> None:
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)


def _gate(layer: nn.Module, values: Tensor) -> Tensor:
    """Factor from 0 to 2; 1 on average at the start."""
    return 2 * torch.sigmoid(layer(values))


def _at(values_BLD: Tensor, last_B: Tensor | None) -> Tensor:
    """One place of each row as (B, 1, D); all places without ``last_B``."""
    if last_B is None:
        return values_BLD
    return values_BLD[torch.arange(len(last_B), device=values_BLD.device), last_B].unsqueeze(1)


def _drop(values: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    if not share or generator is None:
        return values
    kept = torch.empty_like(values).bernoulli_(1 - share, generator=generator)
    return values * kept / (1 - share)
