# Shape letters in this file: B examples of a batch, C candidates, V tokens of the vocabulary
"""Losses over the candidates' labels at the one place where an answer begins."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def combined_scores(logits_BC: Tensor, shown_BC: Tensor, prior_BC: Tensor | None) -> Tensor:
    """``tripletune.residual.combine`` with weight 1, or the logits alone where there is no prior; shape (B, C)."""
    score_BC = logits_BC
    if prior_BC is not None:
        kept_BC = logits_BC.masked_fill(~shown_BC, 0.0)
        mean_B1 = kept_BC.sum(dim=1, keepdim=True) / shown_BC.sum(dim=1, keepdim=True)
        score_BC = logits_BC - mean_B1 + prior_BC
    return score_BC.masked_fill(~shown_BC, -torch.inf)


def listwise_loss(score_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Cross-entropy of the targets' shares under a softmax over the candidates; shape (B,).

    ListNet's top-one loss (Cao et al., ICML 2007).
    """
    log_BC = functional.log_softmax(score_BC, dim=1)
    return -(target_BC * log_BC.masked_fill(target_BC == 0, 0.0)).sum(dim=1)


def ranknet_loss(score_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Mean over the pairs of a target and another candidate of ``-log sigmoid(difference)``, weighted by the target's
    share (RankNet, Burges et al., ICML 2005); shape (B,). 0 where all candidates are targets."""
    is_other_BC = (target_BC == 0) & torch.isfinite(score_BC)
    finite_BC = score_BC.masked_fill(~torch.isfinite(score_BC), 0.0)
    pair_BCC = functional.softplus(finite_BC[:, None, :] - finite_BC[:, :, None])
    counted_BCC = target_BC[:, :, None] * is_other_BC[:, None, :]
    return (pair_BCC * counted_BCC).sum(dim=(1, 2)) / is_other_BC.sum(dim=1).clamp(min=1)


def mass_loss(logits_BV: Tensor, logits_BC: Tensor, shown_BC: Tensor) -> Tensor:
    """``-log`` of the probability that an answer begins with any label: keeps answers valid without constraint;
    shape (B,). With ``listwise_loss`` of the same logits it sums to the cross-entropy over the whole vocabulary."""
    labels_B = logits_BC.masked_fill(~shown_BC, -torch.inf).logsumexp(dim=1)
    return logits_BV.logsumexp(dim=1) - labels_B


LOSSES = {"listwise": listwise_loss, "ranknet": ranknet_loss}
