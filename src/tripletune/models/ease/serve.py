# Shape letters in this file:
#   U users, M films of the catalogue, F films of the model, B users of one block
"""EASE for retrieval: film by film weights applied to a history weighted by recency.

The fit weights all likes equally; only a user's own history is weighted by recency at retrieval, so that the newest
likes count without a refit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from tripletune.errors import InputError
from tripletune.models.serving.catalogue import Catalogue, Likes, read_table, read_tensors
from tripletune.models.serving.retriever import Histories, RetrieverSpec, Serving
from tripletune.models.serving.topk import Floats, Ints, Ragged, top_columns

LEAST_WEIGHT = 2.0**-30
"""A like of less weight is dropped: it does not change a float32 sum in which the newest like has weight 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EaseFit:
    """The weights of one fit, for the most liked films."""

    catalogue: Catalogue
    """LightGCN's: the order of ties, and the possible candidates."""
    columns_F: Ints
    """The model's films as columns of the catalogue, ascending."""
    place_M: Ints
    """Place of each column in ``columns_F``, -1 for a film outside the model."""
    likes_F: Floats
    """Like counts in the rows of the fit."""
    weights_FF: Floats
    """From the film of the row to the film of the column; the diagonal is 0."""

    @classmethod
    def build(cls, catalogue: Catalogue, movie_ids_F: Ints, likes_F: Floats, weights_FF: Floats) -> EaseFit:
        """Sort the fitted weights by the catalogue's order.

        Args:
            catalogue: holds all of the films.
            movie_ids_F: the model's films; the other arguments have a row for each.
            likes_F, weights_FF: see the fields.
        """
        columns_F = catalogue.columns(movie_ids_F)
        if (np.diff(columns_F) < 0).any():  # fitted under another seed
            order_F = np.argsort(columns_F)
            columns_F, likes_F, weights_FF = columns_F[order_F], likes_F[order_F], weights_FF[np.ix_(order_F, order_F)]
        place_M = np.full(len(catalogue), -1, dtype=np.int64)
        place_M[columns_F] = np.arange(len(columns_F))
        return cls(catalogue=catalogue, columns_F=columns_F, place_M=place_M, likes_F=likes_F, weights_FF=weights_FF)

    def top(self, likes: Likes, seen: Ragged, num_viewers: int, k: int, history_age: float) -> Ints:
        """The ``k`` best films of each user in columns of the catalogue (U, k), -1 at the end of shorter rows.

        Args:
            likes: the users' likes before their cutoffs.
            seen: columns of the catalogue rated before the cutoff.
            history_age: a like of age t counts ``exp(-t / history_age)``; 0 counts all equally.
        """
        row_E = np.repeat(np.arange(num_viewers), np.diff(seen.offsets))
        place_E = self.place_M[seen.values]
        masked = Ragged.from_pairs(row_E[place_E >= 0], place_E[place_E >= 0], num_viewers)
        scores = self._scores(self._histories(likes, num_viewers, history_age))
        top_UK = top_columns(scores, num_viewers, masked, k)[0]
        return np.where(top_UK < 0, -1, self.columns_F[top_UK])

    def _histories(self, likes: Likes, num_viewers: int, history_age: float) -> sparse.csr_array:
        column_E = self.catalogue.columns(likes.movie_E)
        place_E = np.where(column_E < 0, -1, self.place_M[column_E])
        weight_E = np.exp(-likes.age_E / history_age) if history_age else np.ones(len(place_E))
        known_E = (place_E >= 0) & (weight_E > LEAST_WEIGHT)
        return sparse.csr_array(
            (weight_E[known_E].astype(np.float32), (likes.user_E[known_E], place_E[known_E])),
            shape=(num_viewers, len(self.columns_F)),
        )

    def _scores(self, history_UF: sparse.csr_array) -> Callable[[int, int], Tensor]:
        """``score_block``; a user who liked no film of the model gets the most liked ones.

        A history has some dozens of films: a sparse product reads only their rows, and adds them up in one order,
        whatever the number of threads and the other users.
        """

        place_E = torch.from_numpy(history_UF.indices.astype(np.int64))
        starts_U = torch.from_numpy(history_UF.indptr.astype(np.int64))
        weight_E = torch.from_numpy(history_UF.data)
        weights_FF, likes_F = torch.from_numpy(self.weights_FF), torch.from_numpy(self.likes_F)

        def score_block(start: int, stop: int) -> Tensor:
            first, last = starts_U[start], starts_U[stop]
            scores_BF: Tensor = functional.embedding_bag(
                place_E[first:last],
                weights_FF,
                starts_U[start:stop] - first,
                mode="sum",
                per_sample_weights=weight_E[first:last],
            )
            scores_BF[starts_U[start + 1 : stop + 1] == starts_U[start:stop]] = likes_F
            return scores_BF

        return score_block


def load_ease(
    folder: Path, catalogue: Catalogue, fits: Iterable[str] = ("a", "b"), stage: str = "ease"
) -> dict[str, EaseFit]:
    """Read the fits that exist: none where too many films are liked for a baseline, else b alone or both.

    Args:
        folder: of the stage.
        catalogue: LightGCN's.
        fits: names of the fits to load; the weights of 10,000 films are 400 MB.
        stage: ``ease``, or another one that writes such files.

    Raises:
        InputError: a file is missing, damaged, not finite, or does not belong to the others.
    """
    films = read_table(folder / "movies.parquet").sort("fit", "row")
    found = {}
    for fit in fits:
        ids_F = films.filter(pl.col("fit") == fit)["movie_id"].to_numpy().astype(np.int64)
        if not len(ids_F):
            continue
        path = folder / f"fit_{fit}.safetensors"
        tensors = read_tensors(path, ("likes", "weights"))
        if tensors["weights"].shape != (len(ids_F),) * 2 or tensors["likes"].shape != (len(ids_F),):
            raise InputError(f"{path} and movies.parquet next to it have different numbers of films; fit {stage} again")
        if (catalogue.columns(ids_F) < 0).any():
            raise InputError(f"{stage} and lightgcn were trained on different films; pin both to one run, or neither")
        found[fit] = EaseFit.build(catalogue, ids_F, tensors["likes"].numpy(), tensors["weights"].numpy())
    return found


@dataclass(frozen=True, slots=True)
class EaseRanker:
    """A fit's lists: a history is weighted by recency but for ``ease-plain``."""

    fit: EaseFit
    history_age: float

    def top(self, name: str, histories: Histories, depth: int) -> Ints:
        """``Ranker.top``."""
        age = 0.0 if name.endswith("-plain") else self.history_age
        return self.fit.top(histories.likes, histories.seen, histories.num_users, depth, age)


def _load_rankers(folder: Path, serving: Serving) -> dict[str, EaseRanker]:
    settings = serving.settings
    fits = load_ease(folder, serving.catalogue, serving.fits)
    if "ease" in settings.lists and fits.keys() != set(serving.fits):
        raise InputError(
            f"retrieve.retriever = {settings.retriever!r} uses EASE, which was fitted for the comparison alone; pin a "
            "run whose candidates came from EASE, or remove the pin"
        )
    return {name: EaseRanker(fit, settings.ease_history_age) for name, fit in fits.items()}


RETRIEVER = RetrieverSpec(name="ease", lists=("ease-plain", "ease"), load=_load_rankers)
