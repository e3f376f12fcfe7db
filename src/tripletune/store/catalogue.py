"""The films of a split that a retriever may rank."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.errors import InputError
from tripletune.schemas.base import conform
from tripletune.schemas.split import CATALOGUE
from tripletune.store.files import write_atomically
from tripletune.store.read import read_parquet


def write_catalogue(split: Path, movie_ids_M: Iterable[int]) -> None:
    """Write the films of the split's catalogue, ascending."""
    split.mkdir(parents=True, exist_ok=True)
    films = conform(pl.DataFrame({"movie_id": sorted(movie_ids_M)}), CATALOGUE)
    write_atomically(split / "movies.parquet", films.write_parquet)


def read_catalogue(split: Path) -> npt.NDArray[np.int32]:
    """Ids of the films of the split's catalogue, ascending.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = split / "movies.parquet"
    try:
        films = conform(read_parquet(path), CATALOGUE)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} must hold the films of the split ({error}); run split again") from None
    return films["movie_id"].to_numpy().copy()
