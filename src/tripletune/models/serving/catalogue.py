# Shape letters in this file: U users, M films, D vector width, E likes
"""Loading of trained models: films in their order of ties, pooled users, checked tables and tensors.

A model may come from an earlier run (``specialists.pin``), so everything is looked up by movie id and entity key. A
film that a model was not trained on cannot be scored by it and is no candidate.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tripletune.errors import InputError
from tripletune.models.serving.pooling import pool_users
from tripletune.models.serving.topk import Floats, Ints
from tripletune.stable_hash import tie_order
from tripletune.store.read import read_parquet

LOOKED_UP = 1 << 22
"""Movie ids below this are looked up in a table of up to 34 MB, ten times as fast as searched for; MovieLens has none
above 300,000."""


class Catalogue:
    """The films of a specialist, in the order that breaks ties between them: by a seeded hash of the id.

    Ascending ids would favour old films, which MovieLens numbered first and which are the more popular ones.
    """

    def __init__(self, movie_ids_M: npt.ArrayLike, seed: int) -> None:
        given_M = np.asarray(movie_ids_M).astype(np.int64)
        self.order_M: Ints = tie_order(given_M, seed)
        self.ids_M: Ints = given_M[self.order_M]
        self._by_id_M: Ints = np.argsort(self.ids_M)
        self._sorted_M: Ints = self.ids_M[self._by_id_M]
        self._column_of_id: Ints | None = None
        if len(given_M) and self._sorted_M[0] >= 0 and self._sorted_M[-1] < LOOKED_UP:
            # the last place belongs to no film: ids out of range end up there
            self._column_of_id = np.full(self._sorted_M[-1] + 2, -1, dtype=np.int64)
            self._column_of_id[self.ids_M] = np.arange(len(self.ids_M))

    def __len__(self) -> int:
        return len(self.ids_M)

    def columns(self, movie_ids: npt.ArrayLike) -> Ints:
        """Column of each film, -1 for a film outside the catalogue; any shape."""
        wanted = np.asarray(movie_ids).astype(np.int64)
        if self._column_of_id is not None:
            # as unsigned numbers, those below 0 are large
            place = np.minimum(wanted.view(np.uint64), np.uint64(len(self._column_of_id) - 1)).view(np.int64)
            return self._column_of_id[place]
        place = np.minimum(np.searchsorted(self._sorted_M, wanted), len(self) - 1)
        return np.where(self._sorted_M[place] == wanted, self._by_id_M[place], -1)

    def movie_ids(self, columns: Ints) -> Ints:
        """Movie id of each column; -1 stays -1."""
        return np.where(columns < 0, -1, self.ids_M[columns])


@dataclass(frozen=True, slots=True)
class Likes:
    """Likes of users numbered from 0: ``age_E`` counts likes, the newest is 0."""

    user_E: Ints
    movie_E: Ints
    age_E: Ints


@dataclass(frozen=True, slots=True)
class RatingEvents:
    """Ratings of users numbered from 0, liked or not, sorted by user and, within one, oldest first."""

    user_E: Ints
    movie_E: Ints
    rating_E: Floats
    """NaN where it is unknown."""
    time_E: Ints
    """Seconds."""
    like_E: npt.NDArray[np.bool_]

    def take(self, kept_E: npt.NDArray[np.bool_] | Ints) -> RatingEvents:
        """Some of the rows, by a mask or by their places."""
        return RatingEvents(*(getattr(self, field.name)[kept_E] for field in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Common part of both specialists' fits: films, and vectors from which a user is pooled."""

    catalogue: Catalogue
    pool_vectors_MD: Tensor
    bias_M: Tensor
    half_life: float
    power: float

    def pool(self, likes: Likes, num_viewers: int) -> Tensor:
        """User vectors (U, D) from the likes of films in the catalogue; zeros for a user without any."""
        column_E = self.catalogue.columns(likes.movie_E)
        known_E = column_E >= 0
        row_E, user_E, age_E = (torch.from_numpy(ints[known_E]) for ints in (column_E, likes.user_E, likes.age_E))
        return pool_users(self.pool_vectors_MD, user_E, row_E, age_E, num_viewers, self.half_life, self.power)


def read_table(path: Path) -> pl.DataFrame:
    """Read a Parquet file of a training stage; InputError when it cannot be read."""
    try:
        return read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} cannot be read ({error}); train the specialist again") from None


def read_tensors(path: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Named tensors of a fit in float32; InputError when one is missing or not finite, or the file is damaged."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); train the specialist again") from None
    for name in names:
        if name not in tensors:
            raise InputError(f"{path} has no tensor '{name}'; it holds {', '.join(sorted(tensors))}")
        if not _is_finite(tensors[name]):
            raise InputError(f"{path}: tensor '{name}' holds NaN or infinity; lower the learning rate and train again")
    return {name: tensors[name].float() for name in names}


def _is_finite(tensor: Tensor) -> bool:
    # minimum and maximum are NaN where any value is, and nothing of the tensor's size is allocated
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def in_catalogue_order(path: Path, tensors: dict[str, Tensor], catalogue: Catalogue) -> dict[str, Tensor]:
    """Tensors with a row per film (M, ...), sorted as the catalogue; InputError when their length differs from it."""
    for name, tensor in tensors.items():
        if tensor.shape[0] != len(catalogue):
            raise InputError(
                f"{path}: '{name}' has {tensor.shape[0]} rows, but movies.parquet next to it has {len(catalogue)}; "
                "train the specialist again"
            )
    order_M = torch.from_numpy(catalogue.order_M)
    return {name: tensor[order_M].contiguous() for name, tensor in tensors.items()}


def read_pooling(folder: Path) -> dict[str, float]:
    """How a fit weighs likes by their age, from its ``pooling.json``: ``half_life`` and ``power``.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        pooling = json.loads((folder / "pooling.json").read_text(encoding="utf-8"))
        return {"half_life": float(pooling["half_life"]), "power": float(pooling["power"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'pooling.json'} must hold numbers 'half_life' and 'power' ({error}); train the specialist again"
        ) from None
