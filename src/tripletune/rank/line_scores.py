# Shape letters in this file: C candidates, T tokens of the longest line, V tokens of the vocabulary
"""Log-probability that a constrained answer begins with each candidate's line, for answers that are written out.

Constrained decoding allows, at each place of the first line, the tokens that go on some candidate's line. The
probability of a line is the product of its tokens', each renormalised over the allowed ones; no line begins another, so
the candidates' probabilities sum to one. One forward pass reads the prompt, a second one all lines behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def score_lines(model: Any, prompt: Sequence[int], lines: Sequence[tuple[int, ...]], pad: int) -> tuple[Tensor, int]:
    """Log-probabilities of the lines, and which of them greedy decoding writes.

    Args:
        model: a causal language model.
        prompt: token ids up to where the answer begins.
        lines: distinct token ids of each candidate's line, none of which begins another.
        pad: any token id.

    Returns:
        Shape (C,), float32, nats; and the index of the greedy line. NaN where a logit that counts is not finite.
    """
    width = max(map(len, lines)) - 1
    lines_CT = torch.tensor([[*line[:-1], *[pad] * (width + 1 - len(line))] for line in lines], device=model.device)
    with torch.inference_mode():
        read = model(torch.tensor([list(prompt)], device=model.device), use_cache=True, logits_to_keep=1)
        first_V = read.logits[0, -1].float().cpu()
        behind_CTV = None
        if width:
            read.past_key_values.batch_repeat_interleave(len(lines))
            # padded on the right and without a mask: under causal attention no token sees what follows it
            behind_CTV = model(lines_CT, past_key_values=read.past_key_values, use_cache=True).logits.float().cpu()
    scores = [0.0] * len(lines)
    greedy = list(range(len(lines)))
    for place in range(width + 1):
        for prefix in dict.fromkeys(line[:place] for line in lines if len(line) > place):
            open_lines = [row for row, line in enumerate(lines) if line[:place] == prefix and len(line) > place]
            logits_V = first_V if place == 0 or behind_CTV is None else behind_CTV[open_lines[0], place - 1]
            allowed = sorted({lines[row][place] for row in open_lines})
            log_probabilities = logits_V[allowed].log_softmax(0).tolist()
            for row in open_lines:
                scores[row] += log_probabilities[allowed.index(lines[row][place])]
            if greedy == open_lines:
                best = allowed[int(logits_V[allowed].argmax())]
                greedy = [row for row in open_lines if lines[row][place] == best]
    return torch.tensor(scores), greedy[0]
