# Shape letters in this file: B prompts, L tokens of the longest one, V tokens of the vocabulary
"""Logits of the token that follows each prompt, the same in training on labels and in ranking by them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def next_token_logits(model: Any, input_ids_BL: Tensor, last_B: Tensor) -> Tensor:
    """Logits in float32 after each prompt's last token; shape (B, V).

    Only these places go through the model's head. There is no mask: prompts are padded on the right, and under causal
    attention no token sees what follows it.

    Args:
        model: a causal language model.
        input_ids_BL: prompts, padded on the right.
        last_B: place of each prompt's last token, on the same device.
    """
    places, of_row_B = torch.unique(last_B, return_inverse=True)
    logits = model(input_ids=input_ids_BL, use_cache=False, logits_to_keep=places).logits
    rows_B = torch.arange(len(of_row_B), device=of_row_B.device)
    logits_BV: Tensor = logits[rows_B, of_row_B].float()
    return logits_BV
