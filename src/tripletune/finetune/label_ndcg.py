# Shape letters in this file: B examples of a batch, C candidates, K first places that count
"""nDCG of the candidates in the order that would be served, from the logits of an evaluation's own forward pass."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tripletune.ndcg import PROMOTION_CUTOFF, ndcg
from tripletune.residual import combine


def label_ndcg(logits_BC: Tensor, inputs: Mapping[str, Tensor], weight: float | None) -> Tensor:
    """nDCG at ``PROMOTION_CUTOFF`` of each example; float64, shape (B,), on the device of the logits.

    Args:
        logits_BC: of the candidates' labels, in the order shown.
        inputs: ``targets``, ``places``, ``prior`` and ``shown`` of ``label_batches.pad_labels``; a candidate with a
            target is relevant.
        weight: of the centred logits in the sum with the retriever's prior, where of equal scores the one that stands
            first in the retriever's order comes first (``rank.served``); None: the order is by the logits alone, where
            it is the one shown first.
    """
    shown_BC, target_BC = inputs["shown"].cpu().numpy(), inputs["targets"].cpu().numpy()
    score_BC, place_BC = logits_BC.double().cpu().numpy(), np.broadcast_to(np.arange(shown_BC.shape[1]), shown_BC.shape)
    if weight is None:
        score_BC = np.where(shown_BC, score_BC, -np.inf)
    else:
        score_BC = combine(score_BC, inputs["prior"].double().cpu().numpy(), shown_BC, weight)
        place_BC = inputs["places"].cpu().numpy()
    order_BK = np.lexsort((place_BC, -score_BC))[:, :PROMOTION_CUTOFF]
    hit_BC = (target_BC > 0) & shown_BC
    hit_BK = np.take_along_axis(hit_BC, order_BK, axis=1)
    return torch.from_numpy(ndcg(hit_BK, hit_BC.sum(axis=1))).to(logits_BC.device)
