# Shape letters in this file: R rows of the table, U users, F features
"""What a release says of its users (age, gender, occupation) as vectors whose product is their agreement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from tripletune.errors import InputError
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.places import Places
from tripletune.schemas.ages import AGE_GROUP
from tripletune.store.read import read_parquet


class People:
    """Users of the release, each a vector with one entry per attribute that is given."""

    def __init__(self, users: pl.DataFrame, weight: float) -> None:
        """Encode a table.

        Args:
            users: ``schemas.USERS``.
            weight: of two users who agree in everything; each attribute has a third of it.
        """
        attributes = users.select(AGE_GROUP.cast(pl.String), "gender", "occupation")
        one_hot = attributes.to_dummies(drop_nulls=True).to_numpy().astype(np.float32)
        self._vectors_RF = torch.from_numpy(one_hot * np.float32(np.sqrt(weight / attributes.width)))
        self._place_of = Places(users["user_id"].to_numpy().astype(np.int64))

    @classmethod
    def read(cls, ingest: Path, weight: float) -> People:
        """Read the table from a finished ingest.

        Raises:
            InputError: it is empty.
        """
        users = read_parquet(ingest / "users.parquet")
        if users.is_empty():
            raise InputError("retrieve.similar_people needs ages, genders and occupations; this release has no users")
        return cls(users, weight)

    def vectors(self, users_U: Ints) -> Tensor:
        """Vectors (U, F); zero for a user who is not in the table, who thus agrees with nobody."""
        place_U = self._place_of(users_U)
        return torch.where(torch.from_numpy(place_U >= 0).unsqueeze(1), self._vectors_RF[np.maximum(place_U, 0)], 0.0)
