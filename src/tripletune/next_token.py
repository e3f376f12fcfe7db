# Shape letters in this file: B prompts, H hidden width, L tokens of the longest one, V tokens of the vocabulary
"""Logits of the token that follows each prompt, the same in training on labels and in ranking by them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

_ROWS = 8192
"""Tokens of the vocabulary whose weights are in float32 at once: 128 MiB of a width of 4,096."""


def head_in_float32(model: Any) -> None:
    """Have a model in 16 bits give its logits in float32, for as long as it lives.

    Logits near 28 lie an eighth apart in bfloat16, so that of 20 candidates a third had the same score as another. The
    product takes the same hidden states and weights as before; only its result is not rounded.

    Args:
        model: a causal language model of transformers, before processes wrap it.
    """
    head = model.get_output_embeddings()
    if head.weight.dtype != torch.float32:
        head.register_forward_hook(_unrounded)


def _unrounded(head: nn.Linear, inputs: tuple[Tensor], rounded: Tensor) -> Tensor:
    """The head's output again, in float32; its weights are frozen and turned into float32 in parts."""

    def product(hidden: Tensor, first: int) -> Tensor:
        bias = None if head.bias is None else head.bias[first : first + _ROWS].float()
        return functional.linear(hidden, head.weight[first : first + _ROWS].float(), bias)

    firsts = range(0, head.weight.shape[0], _ROWS)
    with torch.autocast(rounded.device.type, enabled=False):
        hidden = inputs[0].float()  # once, so that the parts' gradients are summed in float32
        # a backward pass makes each part again in place of keeping them all
        parts = [checkpoint(product, hidden, first, use_reentrant=False, preserve_rng_state=False) for first in firsts]
        return torch.cat(parts, dim=-1)


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
