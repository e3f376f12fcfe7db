# Shape letters in this file:
#   U viewers asked about, K places, V viewers of the fit
"""The retrievers by name: from histories and a mask to each viewer's best films.

``lightgcn`` is always there, ``ease`` and ``sasrec`` where they were fitted, ``fused`` is the reciprocal rank fusion of
those with a weight. All lists are columns of LightGCN's catalogue under one mask, with ties in one order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tripletune.config import RetrieveConfig
from tripletune.errors import InputError
from tripletune.models.ease.serve import EaseFit
from tripletune.models.lightgcn.serve import LightGCNFit
from tripletune.models.sasrec.serve import SasrecFit
from tripletune.models.serving.catalogue import Likes
from tripletune.models.serving.topk import Ints, Ragged, product_blocks, top_columns
from tripletune.retrieve.fuse import fuse


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstStage:
    """What ranks the whole catalogue in one fit."""

    settings: RetrieveConfig
    lightgcn: LightGCNFit
    ease: EaseFit | None
    sasrec: SasrecFit | None

    @property
    def names(self) -> tuple[str, ...]:
        """Retrievers that can be asked."""
        return (
            "lightgcn",
            *(("ease-plain", "ease") if self.ease else ()),
            *(("sasrec",) if self.sasrec else ()),
            *(("fused",) if self.settings.retriever == "fused" else ()),
        )

    def ask(self, likes: Likes, seen: Ragged, users_UD: Tensor) -> Lists:
        """The lists of some viewers.

        Args:
            likes: their likes before the cutoffs.
            seen: columns of LightGCN's catalogue rated before the cutoff.
            users_UD: their LightGCN vectors.
        """
        return Lists(self, likes, seen, users_UD)


@dataclass(slots=True)
class Lists:
    """Ranked lists of some viewers, made when they are first asked for."""

    stage: FirstStage
    likes: Likes
    seen: Ragged
    users_UD: Tensor
    _made: dict[str, Ints] = field(default_factory=dict)

    def top(self, name: str, length: int) -> Ints:
        """The best films by one retriever, columns (U, length), -1 at the end of shorter rows.

        Args:
            name: one of the stage's ``names``.
            length: at most ``RetrieveConfig.depth``.
        """
        if name not in self._made:
            self._made[name] = self._rank(name, self.stage.settings.depth)
        return self._made[name][:, :length]

    def of(self, viewer_S: Ints) -> Lists:
        """The lists of some of these viewers, numbered anew; those made already are taken over."""
        number_U = np.full(self.users_UD.shape[0], -1, dtype=np.int64)
        number_U[viewer_S] = np.arange(len(viewer_S))
        viewer_E = number_U[self.likes.viewer_E]
        known_E = viewer_E >= 0
        return Lists(
            self.stage,
            Likes(viewer_E[known_E], self.likes.movie_E[known_E], self.likes.age_E[known_E]),
            self.seen.rows(viewer_S),
            self.users_UD[torch.from_numpy(viewer_S)],
            {name: made_UK[viewer_S] for name, made_UK in self._made.items()},
        )

    def _rank(self, name: str, depth: int) -> Ints:
        settings, num_viewers = self.stage.settings, self.users_UD.shape[0]
        match name, self.stage.ease, self.stage.sasrec:
            case "lightgcn", _, _:
                fit = self.stage.lightgcn
                blocks = product_blocks(self.users_UD, fit.movie_vectors_MD, fit.bias_M)
                return top_columns(blocks, num_viewers, self.seen, depth)[0]
            case "ease" | "ease-plain", EaseFit() as ease, _:
                age = settings.ease_history_age if name == "ease" else 0.0
                return ease.top(self.likes, self.seen, num_viewers, depth, age)
            case "sasrec", _, SasrecFit() as sasrec:
                users_UD = sasrec.users(self.likes, num_viewers)
                blocks = product_blocks(users_UD, sasrec.movie_vectors_MD, sasrec.bias_M)
                return top_columns(blocks, num_viewers, self.seen, depth)[0]
            case "fused", _, _:
                parts = [self.top(part, depth) for part in settings.fused_weights]
                return fuse(parts, list(settings.fused_weights.values()), settings.fused_k, depth)
        raise ValueError(f"{name} was not fitted; there are {', '.join(self.stage.names)}")


def first_stages(
    lightgcn: dict[str, LightGCNFit],
    sasrec: dict[str, SasrecFit],
    ease: dict[str, EaseFit],
    settings: RetrieveConfig,
) -> dict[str, FirstStage]:
    """Put the retrievers of each fit together.

    Args:
        lightgcn, sasrec, ease: what was read, by fit; SASRec's and EASE's may be empty.
        settings: section ``[retrieve]``.

    Raises:
        InputError: SASRec knows other films than LightGCN, or EASE was fitted for the comparison alone.
    """
    if "ease" in settings.lists and ease.keys() != lightgcn.keys():
        raise InputError(
            f"retrieve.retriever = {settings.retriever!r} asks EASE, which was fitted for the comparison alone; pin a "
            "run whose candidates came of EASE, or remove the pin"
        )
    for fit, one in sasrec.items():
        if one.catalogue.ids_M.tolist() != lightgcn[fit].catalogue.ids_M.tolist():
            raise InputError("sasrec and lightgcn were trained on different films; pin both to one run, or neither")
    return {
        fit: FirstStage(settings=settings, lightgcn=one, ease=ease.get(fit), sasrec=sasrec.get(fit))
        for fit, one in lightgcn.items()
    }
