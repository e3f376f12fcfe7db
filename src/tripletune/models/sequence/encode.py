"""User vectors of the sequence model: the output after each user's newest event."""

# Shape letters in this file: U users, E events, B users of a block, L places of a line, D width
from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tripletune.models.sequence.events import Events
from tripletune.models.sequence.model import EventModel, Window
from tripletune.models.training.windows import pack_newest, padded_blocks
from tripletune.threads import map_blocks

ENCODE_ROWS = 32
"""Users encoded at a time, on one thread. Every block is padded to this many rows and its full length: a product of
another shape may round differently, and a user's vector must not depend on the others in the block."""


@torch.no_grad()
def encode(model: EventModel, films_MD: Tensor, events: Events) -> Tensor:
    """Vectors (U, D) of users by their newest events; zeros, which score by bias alone, without any.

    Args:
        films_MD: vectors of the films as they are read.
        events: films are rows of those; a model that reads the time of the request takes it from there, and where it is
            unknown that of the newest event.
    """
    count_U, device = events.count_U, films_MD.device
    user_E = torch.repeat_interleave(count_U)
    place_UL, length_U = pack_newest(user_E, torch.arange(user_E.numel()), count_U.numel(), model.shape.max_length)
    vectors_UD = films_MD.new_zeros(count_U.numel(), model.shape.dim)
    blocks = padded_blocks(length_U, model.shape.max_length, ENCODE_ROWS)

    def encode_block(block: int) -> Tensor:
        """Vectors of the block's users, (B, D)."""
        length, user_B = blocks[block]
        place_BL = place_UL.new_zeros(ENCODE_ROWS, length)
        have = min(length, place_UL.shape[1])
        place_BL[: user_B.numel(), :have] = place_UL[user_B, :have]
        length_B = length_U.new_ones(ENCODE_ROWS)
        length_B[: user_B.numel()] = length_U[user_B]
        window = gather_window(events, place_BL, length_B)
        if model.shape.request_time:
            asked_B = window.time_BL[:, -1].clone()
            if events.asked_U is not None:
                asked_B[: user_B.numel()] = events.asked_U[user_B]
            window = replace(window, asked_BL=ask_next(window.time_BL, length_B, asked_B))
        encoded_BD: Tensor = model(films_MD, window.to(device), (length_B - 1).to(device))
        return encoded_BD[: user_B.numel()]

    computed = map_blocks(encode_block, len(blocks)) if device.type == "cpu" else map(encode_block, range(len(blocks)))
    for (_, user_B), vectors_BD in zip(blocks, computed, strict=True):
        vectors_UD[user_B.to(device)] = vectors_BD
    return vectors_UD


def ask_next(time_BL: Tensor, length_B: Tensor, asked_B: Tensor) -> Tensor:
    """Seconds at which the film after each place is asked for: of the next event, and ``asked_B`` after the last."""
    next_BL = torch.cat([time_BL[:, 1:], asked_B.unsqueeze(1)], dim=1)
    is_last_BL = torch.arange(time_BL.shape[1]) == length_B.unsqueeze(1) - 1
    return torch.where(is_last_BL, asked_B.unsqueeze(1), next_BL)


def gather_window(events: Events, row_BL: Tensor, length_B: Tensor) -> Window:
    """The events in given rows of the table, padded after each line's length.

    Args:
        row_BL: places in the table.
        length_B: events of each line, at least 1.
    """
    time_BL = events.time_E[row_BL]
    last_B1 = time_BL.gather(1, length_B.unsqueeze(1) - 1)
    is_padding_BL = torch.arange(row_BL.shape[1]) >= length_B.unsqueeze(1)
    time_BL = torch.where(is_padding_BL, last_B1, time_BL)
    movie_BL = events.movie_E[row_BL].long().masked_fill(is_padding_BL, 0)
    level_BL = events.level_E[row_BL].long().masked_fill(is_padding_BL, 0)
    return Window(movie_BL, level_BL, time_BL)
