# Shape letters in this file: U users, K places of a list, D vector width
"""Interface of a retriever: ranked lists of films for users given by their histories.

``models/<name>/serve.py`` declares one as ``RETRIEVER``, and ``config.RETRIEVERS`` names it. Every list holds columns
of LightGCN's catalogue, whatever films the model was trained on: all retrievers share one mask and one order of ties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tripletune.config import RetrieveConfig
from tripletune.models.serving.catalogue import Catalogue, Likes, RatingEvents
from tripletune.models.serving.topk import Ints, Ragged


@dataclass(frozen=True, slots=True, kw_only=True)
class Histories:
    """Likes and ratings of U users before their cutoffs: the only input of a list."""

    likes: Likes
    """Users are numbered from 0; films outside every model may be among them."""
    events: RatingEvents
    """All ratings, liked or not."""
    seen: Ragged
    """Per user, the rated columns of LightGCN's catalogue, liked or not: no list may hold them."""
    lightgcn_UD: Tensor
    """The users' LightGCN vectors, pooled once: LightGCN's list, hint 1 and the similar users need them."""
    asked_U: Ints | None = None
    """Seconds of each request; None where no model reads them (``store.request_time``), or they are unknown."""

    @property
    def num_users(self) -> int:
        """Users, U."""
        return len(self.lightgcn_UD)

    def of(self, user_S: Ints) -> Histories:
        """Some of the users, numbered from 0 in this order."""
        number_U = np.full(self.num_users, -1, dtype=np.int64)
        number_U[user_S] = np.arange(len(user_S))
        user_E = number_U[self.likes.user_E]
        kept_E = user_E >= 0
        event_user_E = number_U[self.events.user_E]
        events = replace(self.events, user_E=event_user_E).take(event_user_E >= 0)
        return Histories(
            likes=Likes(user_E[kept_E], self.likes.movie_E[kept_E], self.likes.age_E[kept_E]),
            events=events.take(np.argsort(events.user_E, kind="stable")),
            seen=self.seen.rows(user_S),
            lightgcn_UD=self.lightgcn_UD[torch.from_numpy(user_S)],
            asked_U=None if self.asked_U is None else self.asked_U[user_S],
        )


class Ranker(Protocol):
    """Loaded fit of a retriever."""

    def top(self, name: str, histories: Histories, depth: int) -> Ints:
        """The best films of each user, columns of LightGCN's catalogue (U, depth), best first.

        A user's row must not depend on the other users, nor on the number of threads. Ties go to the lower column, -1
        fills the end of a row that has fewer films.

        Args:
            name: one of the retriever's ``lists``.
            histories: the users.
            depth: length of the lists.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Context in which a retriever's files are loaded."""

    catalogue: Catalogue
    """LightGCN's, in the order of ties: the films that a list can hold."""
    lightgcn: Mapping[str, Ranker]
    """LightGCN's fits, which every run loads."""
    seed: int
    """The run's, which orders ties."""
    settings: RetrieveConfig

    @property
    def fits(self) -> tuple[str, ...]:
        """Fits to load."""
        return tuple(self.lightgcn)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieverSpec:
    """The declaration of a retriever: its name, its lists, and how its files become rankers.

    Raises:
        ValueError: no list has the retriever's name, or a list's name does not begin with it.
    """

    name: str
    """Also of its folder, of the stage that trains it, and in ``retrieve.retriever``."""
    lists: tuple[str, ...]
    """The list of the retriever's own name makes candidates and is fused; others, named ``<name>-<variant>``, are only
    measured."""
    load: Callable[[Path, Serving], Mapping[str, Ranker]]
    """From the folder of its stage to a ranker for each fit. A fit may be missing where it makes no candidates.
    Damaged files, or films outside LightGCN's catalogue, are refused with an ``InputError``."""

    def __post_init__(self) -> None:
        strangers = [name for name in self.lists if name.split("-")[0] != self.name]
        if self.name not in self.lists or strangers:
            raise ValueError(
                f"retriever {self.name!r} declares the lists {', '.join(self.lists) or 'none'}; one must be named "
                f"{self.name!r}, any other {self.name + '-<variant>'!r}"
            )
