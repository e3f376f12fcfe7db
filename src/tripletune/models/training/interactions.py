"""Training likes of the two fits and the held-out likes of early stopping.

Fit a is trained on ``graph`` likes, fit b on ``graph`` and ``target`` likes; neither has a row of an unseen user. The
``valid`` like only decides when fit b stops; of several (``split.held_out``, protocol ratio) the newest is used. The
specialists get their rows here and never read the split themselves.
"""

# Shape letters in this file: M films, U users, E likes, S rated rows, B users of a batch, R rows of a batch
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from tripletune.errors import InputError
from tripletune.schemas.query import FIT_LABELS
from tripletune.store.catalogue import read_catalogue
from tripletune.store.read import scan_parquet
from tripletune.store.shards import split_files

HISTORY_LABELS = ("graph", "target")
"""Likes that can precede the ``valid`` like."""

COLUMNS = ("user_id", "movie_id", "position", "label", "unseen")
MAX_VALID_USERS = 10_000
"""Users evaluated for early stopping at most, evenly spread over the ids: enough for an error of .002 in ndcg."""


@dataclass(frozen=True, slots=True)
class Likes:
    """Likes of users numbered from 0, sorted by user and, within one, oldest first."""

    user_ids_U: npt.NDArray[np.int32]
    user_E: Tensor
    movie_E: Tensor

    @property
    def num_viewers(self) -> int:
        """Users, U."""
        return len(self.user_ids_U)

    def counts(self) -> Tensor:
        """Likes of each user, shape (U,)."""
        return torch.bincount(self.user_E, minlength=self.num_viewers)


@dataclass(frozen=True, slots=True)
class ValidQuestions:
    """Examples for early stopping: one held-out like per user, and the user's earlier ratings and likes."""

    likes: Likes
    answer_U: Tensor
    seen_user_S: Tensor
    seen_movie_S: Tensor


@dataclass(frozen=True, slots=True)
class Interactions:
    """A specialist's training and validation likes from the split; films are columns of ``movie_ids_M``."""

    movie_ids_M: npt.NDArray[np.int32]
    fits: dict[str, Likes]
    valid: ValidQuestions

    @property
    def num_movies(self) -> int:
        """Films, M."""
        return len(self.movie_ids_M)


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of some users.

    ``row_R`` are their places in the table that the batch is of; ``place_R`` counts a user's rows from the oldest, 0;
    ``count_B`` is their number.
    """

    users_B: Tensor
    user_R: Tensor
    movie_R: Tensor
    place_R: Tensor
    count_B: Tensor
    row_R: Tensor

    @property
    def num_viewers(self) -> int:
        """Users of the batch, B."""
        return self.users_B.numel()


def read_interactions(split: Path, movie_ids: npt.NDArray[np.int32] | None = None) -> Interactions:
    """Read the split's shards.

    Args:
        split: folder with ``shard=NNN/part.parquet`` (schema SPLIT).
        movie_ids: the catalogue, ascending; rows of other films are dropped. None: that of the split.

    Raises:
        InputError: there are no shards, a column is missing, there is no like to train on, or only one film.
    """
    files = list(split_files(split).values())
    scan = scan_parquet(files, hive_partitioning=False).select(COLUMNS)
    movie_ids = read_catalogue(split) if movie_ids is None else movie_ids
    try:
        films = pl.LazyFrame({"movie_id": movie_ids, "movie": np.arange(len(movie_ids), dtype=np.int32)})
        warm = scan.filter(~pl.col("unseen")).join(films, on="movie_id", how="inner").drop("movie_id", "unseen")
        likes = warm.filter(pl.col("label").is_in(HISTORY_LABELS)).collect(engine="streaming")
        likes = likes.sort("user_id", "position").drop("position")
        fits = {fit: _number(likes.filter(pl.col("label").is_in(labels))) for fit, labels in FIT_LABELS.items()}
        del likes
        valid = _ask_valid(warm)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{split} does not hold the columns {', '.join(COLUMNS)} ({error}); run split again") from None
    if not fits["a"].num_viewers:
        raise InputError(f"{split} has no 'graph' like of a user who is not unseen; lower split.like or min_graph")
    if len(movie_ids) < 2:
        raise InputError(f"{split} has one film; nothing can be ranked: give ratings of two films at least")
    return Interactions(movie_ids, fits, valid)


def _number(likes: pl.DataFrame) -> Likes:
    user_E = likes["user_id"].to_numpy()
    is_first_E = np.ones(len(user_E), dtype=bool)
    is_first_E[1:] = user_E[1:] != user_E[:-1]
    return Likes(user_E[is_first_E], torch.from_numpy(is_first_E.cumsum() - 1), _ints(likes["movie"]))


def _ask_valid(warm: pl.LazyFrame) -> ValidQuestions:
    asked = warm.filter(pl.col("label") == "valid").select("user_id", "position", answer="movie").collect()
    # one example per user: the one with the longest history before it
    asked = asked.sort("user_id", "position").unique("user_id", keep="last", maintain_order=True)
    every = -(-len(asked) // MAX_VALID_USERS) or 1
    asked = asked.gather_every(every)
    before = warm.join(asked.lazy().rename({"position": "cutoff"}), on="user_id", how="inner")
    # under ratio a test like may be the older one; it must not be in the mask either
    before = before.filter(pl.col("position") < pl.col("cutoff"), pl.col("label") != "test")
    rated = before.collect(engine="streaming").sort("user_id", "position")
    likes = _number(rated.filter(pl.col("label").is_in(HISTORY_LABELS)))
    # the films of a user's earlier likes may all be outside the catalogue: no history, no example
    numbers = pl.DataFrame({"user_id": likes.user_ids_U, "viewer": np.arange(likes.num_viewers)})
    seen = rated.join(numbers, on="user_id", how="inner", maintain_order="left")
    answer_U = asked.join(numbers, on="user_id", how="inner").sort("viewer")["answer"]
    return ValidQuestions(likes, _ints(answer_U), _ints(seen["viewer"]), _ints(seen["movie"]))


def _ints(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def newest_first_age(user_R: Tensor, num_viewers: int) -> Tensor:
    """Age in likes of rows sorted by user and time: 0 for each user's last row; int64, shape (R,)."""
    end_B = torch.bincount(user_R, minlength=num_viewers).cumsum(0)
    return end_B[user_R] - 1 - torch.arange(user_R.numel())


class Rows(Protocol):
    """A table of users' rows, such as likes, sorted by user and, within one, oldest first."""

    @property
    def movie_E(self) -> Tensor:
        """Column of each row's film."""

    @property
    def num_viewers(self) -> int:
        """Users, with rows or without."""

    def counts(self) -> Tensor:
        """Rows of each user, shape (U,)."""


class Batches:
    """Endless iterator of batches: each pass takes every user once, in a new order; its last batch may be smaller."""

    def __init__(self, rows: Rows, size: int, generator: torch.Generator) -> None:
        self._rows, self._size, self._generator = rows, size, generator
        self._count_U = rows.counts()
        self._start_U = self._count_U.cumsum(0) - self._count_U
        self._left = torch.zeros(0, dtype=torch.int64)  # users still to come in this pass, in order

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._left.numel():
            self._left = torch.randperm(self._rows.num_viewers, generator=self._generator)
        users_B, self._left = self._left[: self._size], self._left[self._size :]
        count_B = self._count_U[users_B]
        user_R = torch.repeat_interleave(count_B)
        place_R = torch.arange(user_R.numel()) - (count_B.cumsum(0) - count_B)[user_R]
        row_R = self._start_U[users_B][user_R] + place_R
        return Batch(users_B, user_R, self._rows.movie_E[row_R], place_R, count_B, row_R)

    def state(self) -> Tensor:
        """The place in the pass; the generator's state is not part of it."""
        return self._left.clone()

    def load_state(self, left: Tensor) -> None:
        """Resume from that place."""
        self._left = left.clone()


def batches(rows: Rows, size: int, generator: torch.Generator) -> Batches:
    """Batches of ``size`` users; each pass draws its order from the generator when its first batch is requested."""
    return Batches(rows, size, generator)
