# Shape letters in this file: B examples of a batch, C candidates, V tokens of the vocabulary
"""Losses over the candidates' labels at the one place where an answer begins."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def combined_scores(logits_BC: Tensor, shown_BC: Tensor, prior_BC: Tensor | None, weight: float = 1.0) -> Tensor:
    """``tripletune.residual.combine``, or the logits alone where there is no prior; shape (B, C)."""
    score_BC = logits_BC
    if prior_BC is not None:
        kept_BC = logits_BC.masked_fill(~shown_BC, 0.0)
        mean_B1 = kept_BC.sum(dim=1, keepdim=True) / shown_BC.sum(dim=1, keepdim=True)
        score_BC = weight * (logits_BC - mean_B1) + prior_BC
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
    counted_BCC = target_BC[:, :, None] * is_other_BC[:, None, :]
    return (_pair_losses(score_BC) * counted_BCC).sum(dim=(1, 2)) / is_other_BC.sum(dim=1).clamp(min=1)


def lambdarank_loss(score_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Sum over the pairs of a candidate and one with a lower target of ``-log sigmoid(difference)``, weighted by what
    nDCG loses if the two change places in the order of the scores; shape (B,). 0 where all targets are equal.

    LambdaRank (Burges, MSR-TR-2010-82) as a loss with constant weights (LambdaLoss, Wang et al., CIKM 2018). The
    targets' shares are the gains of nDCG, which counts the whole list.
    """
    return (_pair_losses(score_BC) * _swap_costs(score_BC.detach(), target_BC)).sum(dim=(1, 2))


def _pair_losses(score_BC: Tensor) -> Tensor:
    """``-log sigmoid(first score - second score)`` of all pairs; shape (B, C, C), meaningless beyond those shown."""
    finite_BC = score_BC.masked_fill(~torch.isfinite(score_BC), 0.0)
    return functional.softplus(finite_BC[:, None, :] - finite_BC[:, :, None])


def _swap_costs(score_BC: Tensor, target_BC: Tensor) -> Tensor:
    """``|delta nDCG|`` of exchanging two candidates in the order of the scores; shape (B, C, C), 0 unless the first has
    the higher target. Of equal scores the candidate shown earlier comes first."""
    place_BC = score_BC.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    discount_C = 1 / torch.log2(torch.arange(2, score_BC.shape[1] + 2, device=score_BC.device).to(score_BC))
    ideal_B = target_BC.sort(dim=1, descending=True).values @ discount_C
    discount_BC = discount_C[place_BC]
    gain_BCC = (target_BC[:, :, None] - target_BC[:, None, :]).clamp(min=0)
    shift_BCC = (discount_BC[:, :, None] - discount_BC[:, None, :]).abs()
    return gain_BCC * shift_BCC * torch.isfinite(score_BC)[:, None, :] / ideal_B[:, None, None]


def mass_loss(logits_BV: Tensor, logits_BC: Tensor, shown_BC: Tensor) -> Tensor:
    """``-log`` of the probability that an answer begins with any label: keeps answers valid without constraint;
    shape (B,). With ``listwise_loss`` of the same logits it sums to the cross-entropy over the whole vocabulary."""
    labels_B = logits_BC.masked_fill(~shown_BC, -torch.inf).logsumexp(dim=1)
    return logits_BV.logsumexp(dim=1) - labels_B


LOSSES = {"listwise": listwise_loss, "ranknet": ranknet_loss, "lambdarank": lambdarank_loss}
