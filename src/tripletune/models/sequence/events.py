"""Streams of ratings: what the sequence model reads of each user, and which of it are targets.

An event is a rating of any height: film, stars, time. A fit's stream of a user ends with the last like that the fit is
trained on. So it holds no rating after that, and no like with another label than the fit's own: fit a never sees a
``target`` like, as input or as a target, and no fit sees an unseen user.
"""

# Shape letters in this file: U users, E events, S events before the valid likes, R levels of stars
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from torch import Tensor

from tripletune.errors import InputError
from tripletune.models.training.interactions import Interactions
from tripletune.schemas.query import FIT_LABELS
from tripletune.schemas.split import LIKE_LABELS
from tripletune.store.read import scan_parquet
from tripletune.store.shards import split_files

MAX_LEVELS = 20
"""Different ratings that are distinguished; a release with more has its ratings rounded to as many levels."""
COLUMNS = ("user_id", "movie_id", "rating", "timestamp", "position", "label", "unseen")


@dataclass(frozen=True, slots=True)
class Events:
    """Ratings of users numbered from 0, sorted by user and, within one, oldest first."""

    count_U: Tensor
    """Events of each user, int64."""
    movie_E: Tensor
    """Film, int32."""
    level_E: Tensor
    """Level of the stars, uint8: place in ``Streams.levels_R``, from 1; 0 stands for an unknown rating."""
    time_E: Tensor
    """Seconds, int64."""
    like_E: Tensor
    """Whether the rating is a like, bool."""
    asked_U: Tensor | None = None
    """Seconds at which the film after a user's newest event is asked for, int64; None: unknown."""

    @property
    def num_viewers(self) -> int:
        """Users, U."""
        return self.count_U.numel()

    def counts(self) -> Tensor:
        """Events of each user, shape (U,)."""
        return self.count_U


@dataclass(frozen=True, slots=True)
class Streams:
    """Streams of both fits, and those before the valid likes; users are numbered as in ``Interactions``."""

    fits: dict[str, Events]
    valid: Events
    levels_R: npt.NDArray[np.float32]
    """Levels of stars, ascending."""


def read_streams(split: Path, interactions: Interactions, *, only_likes: bool = False) -> Streams:
    """Read the streams of the users of ``interactions`` from the split's shards.

    Args:
        split: folder with ``shard=NNN/part.parquet`` (schema SPLIT).
        interactions: of the same split and its whole catalogue.
        only_likes: drop the ratings that are no likes.

    Raises:
        InputError: a column is missing.
    """
    files = list(split_files(split).values())
    scan = scan_parquet(files, hive_partitioning=False).select(COLUMNS).filter(~pl.col("unseen")).drop("unseen")
    films = pl.LazyFrame(
        {"movie_id": interactions.movie_ids_M, "movie": np.arange(interactions.num_movies, dtype=np.int32)}
    )
    try:
        rated = scan.join(films, on="movie_id", how="inner").drop("movie_id").collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{split} does not hold the columns {', '.join(COLUMNS)} ({error}); run split again") from None
    if only_likes:
        rated = rated.filter(pl.col("label") != "other")
    rated = rated.sort("user_id", "position")
    levels_R = find_levels(rated["rating"].to_numpy())
    fits = {
        fit: _events(_before_last_like(rated, labels), interactions.fits[fit].user_ids_U, levels_R)
        for fit, labels in FIT_LABELS.items()
    }
    asked = rated.filter(pl.col("label") == "valid").unique("user_id", keep="last", maintain_order=True)
    asked = asked.filter(pl.col("user_id").is_in(pl.Series(interactions.valid.likes.user_ids_U).implode()))
    asked_U = torch.tensor(asked["timestamp"].to_numpy())
    cutoffs = asked.select("user_id", cutoff="position")
    before = rated.join(cutoffs, on="user_id", how="inner", maintain_order="left").filter(
        pl.col("position") < pl.col("cutoff"), pl.col("label") != "test"
    )
    valid = replace(_events(before, interactions.valid.likes.user_ids_U, levels_R), asked_U=asked_U)
    return Streams(fits, valid, levels_R)


def find_levels(rating_E: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The different ratings, ascending, or ``MAX_LEVELS`` quantiles of them where there are more."""
    levels_R = np.unique(rating_E)
    if len(levels_R) > MAX_LEVELS:
        levels_R = np.unique(np.quantile(levels_R, np.linspace(0, 1, MAX_LEVELS)).astype(np.float32))
    return levels_R


def to_level(rating_E: npt.NDArray[np.float32], levels_R: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Place of the nearest level of each rating, from 1; 0 where the rating is not a number."""
    middle = (levels_R[1:] + levels_R[:-1]) / 2
    level_E = 1 + np.searchsorted(middle, np.nan_to_num(rating_E))
    return np.where(np.isnan(rating_E), 0, level_E).astype(np.uint8)


def _before_last_like(rated: pl.DataFrame, labels: tuple[str, ...]) -> pl.DataFrame:
    """Rows of a fit: its likes, and the ratings that are no likes, up to each user's last like of the fit."""
    last = pl.col("position").filter(pl.col("label").is_in(labels)).max().over("user_id")
    return rated.filter(pl.col("label").is_in([*labels, "other"]), pl.col("position") <= last)


def _events(rated: pl.DataFrame, user_ids_U: npt.NDArray[np.int32], levels_R: npt.NDArray[np.float32]) -> Events:
    """Rows of the given users, all of whom have some."""
    rated = rated.filter(pl.col("user_id").is_in(pl.Series(user_ids_U).implode()))
    found_U, count_U = np.unique(rated["user_id"].to_numpy(), return_counts=True)
    assert np.array_equal(found_U, user_ids_U)
    return Events(
        count_U=torch.from_numpy(count_U.astype(np.int64)),
        movie_E=torch.tensor(rated["movie"].to_numpy()),
        level_E=torch.from_numpy(to_level(rated["rating"].to_numpy(), levels_R)),
        time_E=torch.tensor(rated["timestamp"].to_numpy()),
        like_E=torch.tensor(rated["label"].is_in(LIKE_LABELS).to_numpy()),
    )
