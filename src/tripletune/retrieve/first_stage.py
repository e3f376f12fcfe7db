# Shape letters in this file:
#   U users, K places of a list
"""First stage of retrieval: every retriever's best films of each user, ranked lazily.

``lightgcn`` is always included, the others of ``config.RETRIEVERS`` where they were trained, and ``fused`` is the
reciprocal rank fusion of those with a weight. All lists are columns of LightGCN's catalogue, with one mask and one
order of ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tripletune.config import RETRIEVERS, RetrieveConfig
from tripletune.models.registry import load_retriever
from tripletune.models.serving.retriever import Histories, Ranker, Serving
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.fuse import fuse


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstStage:
    """Rankers of the whole catalogue in one fit."""

    settings: RetrieveConfig
    rankers: Mapping[str, Ranker]
    """By name of the list; a retriever with several lists is entered under each."""
    weights: Mapping[str, float]
    """Of the lists in the fused one; none is zero."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the available lists."""
        return (*self.rankers, *(("fused",) if self.settings.retriever == "fused" else ()))

    def ask(self, histories: Histories) -> Lists:
        """The lists of some users."""
        return Lists(self, histories)


@dataclass(slots=True)
class Lists:
    """Ranked lists of some users, each computed when it is first requested."""

    stage: FirstStage
    histories: Histories
    _made: dict[str, Ints] = field(default_factory=dict)

    def top(self, name: str, length: int) -> Ints:
        """The best films by one list, columns (U, length), -1 at the end of shorter rows.

        Args:
            name: one of the stage's ``names``.
            length: at most ``RetrieveConfig.depth``.
        """
        if name not in self._made:
            self._made[name] = self._rank(name, self.stage.settings.depth)
        return self._made[name][:, :length]

    def of(self, user_S: Ints) -> Lists:
        """The lists of some of these users, numbered from 0; lists already computed are cut, not computed again."""
        made = {name: made_UK[user_S] for name, made_UK in self._made.items()}
        return Lists(self.stage, self.histories.of(user_S), made)

    def _rank(self, name: str, depth: int) -> Ints:
        settings = self.stage.settings
        if name in self.stage.rankers:
            return self.stage.rankers[name].top(name, self.histories, depth)
        if name == "fused":
            parts = [self.top(part, depth) for part in self.stage.weights]
            return fuse(parts, list(self.stage.weights.values()), settings.fused_k, depth)
        raise ValueError(f"{name} was not fitted; there are {', '.join(self.stage.names)}")


def load_first_stages(
    trained: Mapping[str, Path], serving: Serving, weights: Mapping[str, float] | None = None
) -> dict[str, FirstStage]:
    """Load the trained retrievers and group their rankers by fit.

    Args:
        trained: folders of the finished stages by name; those of ``config.RETRIEVERS`` among them are loaded.
        serving: the models loaded already, and the names of the fits.
        weights: of the lists in the fused one; None: those of the config.

    Raises:
        InputError: a retriever's files are missing, damaged or do not fit LightGCN's.
    """
    rankers: dict[str, dict[str, Ranker]] = {fit: {} for fit in serving.fits}
    for name in RETRIEVERS:
        if name in trained:
            retriever = load_retriever(name)
            for fit, ranker in retriever.load(trained[name], serving).items():
                rankers[fit] |= dict.fromkeys(retriever.lists, ranker)
    weights = serving.settings.fused_weights if weights is None else weights
    return {
        fit: FirstStage(settings=serving.settings, rankers=of_fit, weights=weights) for fit, of_fit in rankers.items()
    }
