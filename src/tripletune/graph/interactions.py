"""Likes as the two fits and the early stopping see them: the border between what trains and what is held out.

Fit A is made of ``graph`` likes, fit B of ``graph`` and ``target`` likes; neither has a row of an unseen viewer. The
``valid`` like only tells fit B when to stop; of several (protocol ratio) the newest does. The specialists get their
rows here and read no split themselves.
"""

# Shape letters in this file: M films, U viewers, E likes, S rated rows, B viewers of a batch, R likes of a batch
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from tripletune.errors import InputError

FIT_LABELS = {"a": ("graph",), "b": ("graph", "target")}
HISTORY_LABELS = ("graph", "target")
"""Likes that can precede the ``valid`` like."""

COLUMNS = ("user_id", "movie_id", "position", "label", "unseen")
MAX_VALID_VIEWERS = 10_000
"""Early stopping looks at so many viewers at most, evenly spread over the ids: enough for an error of .002 in ndcg."""


@dataclass(frozen=True, slots=True)
class Likes:
    """Likes of viewers numbered from 0, sorted by viewer and, within one, oldest first."""

    user_ids_U: npt.NDArray[np.int32]
    viewer_E: Tensor
    movie_E: Tensor

    @property
    def num_viewers(self) -> int:
        return len(self.user_ids_U)

    def counts(self) -> Tensor:
        """Likes of each viewer, shape (U,)."""
        return torch.bincount(self.viewer_E, minlength=self.num_viewers)


@dataclass(frozen=True, slots=True)
class ValidQuestions:
    """What early stopping asks: one held-out like per viewer, and what the viewer had rated and liked before it."""

    likes: Likes
    answer_U: Tensor
    seen_viewer_S: Tensor
    seen_movie_S: Tensor


@dataclass(frozen=True, slots=True)
class Interactions:
    """All that a specialist learns from the split; films are columns of ``movie_ids_M``."""

    movie_ids_M: npt.NDArray[np.int32]
    fits: dict[str, Likes]
    valid: ValidQuestions

    @property
    def num_movies(self) -> int:
        return len(self.movie_ids_M)


@dataclass(frozen=True, slots=True)
class Batch:
    """All likes of some viewers: ``place_R`` counts a viewer's likes from the oldest, 0; ``count_B`` says how many."""

    viewers_B: Tensor
    viewer_R: Tensor
    movie_R: Tensor
    place_R: Tensor
    count_B: Tensor

    @property
    def num_viewers(self) -> int:
        return self.viewers_B.numel()


def read_interactions(split: Path, movie_ids: npt.NDArray[np.int32] | None = None) -> Interactions:
    """Read the split's shards.

    Args:
        split: folder with ``shard=NNN/part.parquet`` (schema SPLIT).
        movie_ids: the catalogue, ascending; rows of other films are left out. None: every film somebody rated.

    Raises:
        InputError: there are no shards, a column is missing, or there is no like to train on.
    """
    files = sorted(split.glob("shard=*/part.parquet"))
    if not files:
        raise InputError(f"no shard=NNN/part.parquet in {split}; run the split stage")
    try:
        rows = pl.scan_parquet(files, hive_partitioning=False).select(COLUMNS).collect()
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{split} does not hold the columns {', '.join(COLUMNS)} ({error}); run split again") from None
    if movie_ids is None:
        movie_ids = rows["movie_id"].unique().sort().to_numpy()
    films = pl.DataFrame({"movie_id": movie_ids, "movie": np.arange(len(movie_ids))})
    warm = rows.filter(~pl.col("unseen")).join(films, on="movie_id", how="inner").sort("user_id", "position")
    fits = {fit: _number(warm.filter(pl.col("label").is_in(labels))) for fit, labels in FIT_LABELS.items()}
    if not fits["a"].num_viewers:
        raise InputError(f"{split} has no 'graph' like of a viewer who is not unseen; lower split.like or min_graph")
    return Interactions(movie_ids, fits, _ask_valid(warm))


def _number(likes: pl.DataFrame) -> Likes:
    user_ids_U, viewer_E = np.unique(likes["user_id"].to_numpy(), return_inverse=True)
    movie_E = torch.from_numpy(likes["movie"].to_numpy().astype(np.int64))
    return Likes(user_ids_U, torch.from_numpy(viewer_E.astype(np.int64)), movie_E)


def _ask_valid(warm: pl.DataFrame) -> ValidQuestions:
    asked = warm.filter(pl.col("label") == "valid").select("user_id", "position", answer="movie")
    # one question per viewer: the one with the longest history before it
    asked = asked.unique("user_id", keep="last", maintain_order=True)
    every = -(-len(asked) // MAX_VALID_VIEWERS) or 1
    asked = asked.gather_every(every)
    before = warm.join(asked.rename({"position": "cutoff"}), on="user_id", how="inner", maintain_order="left")
    # under ratio a test like may be the older one; not even the mask may know it
    before = before.filter(pl.col("position") < pl.col("cutoff"), pl.col("label") != "test")
    likes = _number(before.filter(pl.col("label").is_in(HISTORY_LABELS)))
    # the films of a viewer's earlier likes may all be outside the catalogue: no history, no question
    numbers = pl.DataFrame({"user_id": likes.user_ids_U, "viewer": np.arange(likes.num_viewers)})
    seen = before.join(numbers, on="user_id", how="inner", maintain_order="left")
    answer_U = asked.join(numbers, on="user_id", how="inner").sort("viewer")["answer"]
    return ValidQuestions(likes, _ints(answer_U), _ints(seen["viewer"]), _ints(seen["movie"]))


def _ints(column: pl.Series) -> Tensor:
    return torch.from_numpy(column.to_numpy().astype(np.int64))


def newest_first_age(viewer_R: Tensor, num_viewers: int) -> Tensor:
    """Age in likes of rows sorted by viewer and time: 0 for each viewer's last row; int64, shape (R,)."""
    end_B = torch.bincount(viewer_R, minlength=num_viewers).cumsum(0)
    return end_B[viewer_R] - 1 - torch.arange(viewer_R.numel())


def batches(likes: Likes, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches for ever: each pass takes every viewer once, in a new order; the last batch of a pass may be smaller."""
    count_U = likes.counts()
    start_U = count_U.cumsum(0) - count_U
    while True:
        for viewers_B in torch.split(torch.randperm(likes.num_viewers, generator=generator), size):
            count_B = count_U[viewers_B]
            viewer_R = torch.repeat_interleave(count_B)
            place_R = torch.arange(viewer_R.numel()) - (count_B.cumsum(0) - count_B)[viewer_R]
            yield Batch(viewers_B, viewer_R, likes.movie_E[start_U[viewers_B][viewer_R] + place_R], place_R, count_B)
