# Shape letters in this file:
#   U viewers asked about, V viewers of the fit, M films of the catalogue, F films of the model, B viewers of one block
"""EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019), read with a history that fades.

A film's score is the viewer's history times a matrix of film by film weights without a diagonal, the ridge regression
of every film's likes on those of all others. It has a closed form: with ``P = (X'X + lambda I)^-1`` the weight from
film i to film j is ``-P_ij / P_jj``. The rows of ``X`` are the likes of one fit, all alike; only a viewer's own history
is weighted by recency, when it is ranked, so that the newest likes count without a refit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from tripletune.config import RetrieveConfig
from tripletune.meter import claim_memory
from tripletune.retrieve.specialists import Catalogue, Likes
from tripletune.retrieve.topk import Floats, Ints, Ragged, top_columns
from tripletune.threads import one_thread

BYTES_PER_WEIGHT = 24
"""At the peak of a fit: the matrix, its factor and its inverse in float64; the weights that stay have 4."""
GRAM_ROWS = 512
"""Rows of ``X'X`` made at a time, so that no sparse copy of the whole exists."""


def liked_films(likes_VM: sparse.csr_array) -> int:
    """How many films anybody liked in the rows of a fit: what an unlimited EASE would hold."""
    return int(np.count_nonzero(np.bincount(likes_VM.indices, minlength=likes_VM.shape[1])))


def require_memory(num_films: int, num_fits: int) -> None:
    """State what fitting takes, and refuse what this machine has not got.

    Raises:
        InputError: the memory that is free now is less.
    """
    claim_memory(
        f"EASE on {num_films:,} films, {num_fits} fit(s)",
        num_films**2 * (BYTES_PER_WEIGHT + 4 * num_fits),
        "lower retrieve.ease_max_films",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EaseFit:
    """The weights of one fit, for the most liked films."""

    catalogue: Catalogue
    """LightGCN's: the order of ties, and what can be a candidate."""
    columns_F: Ints
    """The model's films as columns of the catalogue, ascending."""
    place_M: Ints
    """Place of each column in ``columns_F``, -1 for a film that the model leaves out."""
    likes_F: Floats
    """Likes in the rows of the fit."""
    weights_FF: Floats
    """From the film of the row to the film of the column; the diagonal is 0."""

    @classmethod
    def fit(cls, likes_VM: sparse.csr_array, catalogue: Catalogue, settings: RetrieveConfig) -> EaseFit:
        """Solve for the weights; see ``require_memory`` for what it takes.

        Args:
            likes_VM: 1 where a viewer of the fit liked a film.
            catalogue: the films of the columns.
            settings: ``ease_lambda`` and ``ease_max_films``; of equally liked films the first in the catalogue stays.
        """
        count_M = np.bincount(likes_VM.indices, minlength=likes_VM.shape[1])
        most_liked = np.argsort(-count_M, kind="stable")[: min(settings.ease_max_films, np.count_nonzero(count_M))]
        columns_F = np.sort(most_liked).astype(np.int64)
        place_M = np.full(len(catalogue), -1, dtype=np.int64)
        place_M[columns_F] = np.arange(len(columns_F))
        return cls(
            catalogue=catalogue,
            columns_F=columns_F,
            place_M=place_M,
            likes_F=count_M[columns_F].astype(np.float32),
            weights_FF=_solve(likes_VM[:, columns_F].astype(np.float64), settings.ease_lambda),
        )

    def top(self, likes: Likes, seen: Ragged, num_viewers: int, k: int, history_age: float) -> Ints:
        """The ``k`` best films of each viewer in columns of the catalogue (U, k), -1 at the end of shorter rows.

        Args:
            likes: the viewers' likes before their cutoffs.
            seen: columns of the catalogue rated before the cutoff.
            history_age: a like of age t counts ``exp(-t / history_age)``; 0 counts all alike.
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
        known_E = place_E >= 0
        return sparse.csr_array(
            (weight_E[known_E].astype(np.float32), (likes.viewer_E[known_E], place_E[known_E])),
            shape=(num_viewers, len(self.columns_F)),
        )

    def _scores(self, history_UF: sparse.csr_array) -> Callable[[int, int], Tensor]:
        """``score_block``; whoever liked no film of the model gets the most liked ones.

        A history has some dozens of films: a sparse product reads only their rows, and adds them up in one order,
        whatever the number of threads and whoever else is asked about.
        """

        def score_block(start: int, stop: int) -> Tensor:
            history_BF = history_UF[start:stop]
            scores_BF = history_BF @ self.weights_FF
            scores_BF[np.diff(history_BF.indptr) == 0] = self.likes_F
            return torch.from_numpy(scores_BF)

        return score_block


def _solve(likes_VF: sparse.csr_array, ridge: float) -> Floats:
    gram_FF = torch.from_numpy(_gram(likes_VF))
    gram_FF.diagonal().add_(ridge)
    inverse_FF = _inverse(gram_FF)
    # LAPACK's matrices lie column by column; the sparse product would turn that round for every block
    weights_FF = inverse_FF.div_(-inverse_FF.diagonal().clone()).float().contiguous()
    weights_FF.fill_diagonal_(0.0)
    return weights_FF.numpy()


def _gram(likes_VF: sparse.csr_array) -> npt.NDArray[np.float64]:
    """``X'X``: how many viewers liked both films. Whole numbers, so the order of the sums is no matter."""
    num_films = likes_VF.shape[1]
    gram_FF = np.empty((num_films, num_films))
    likes_FV = likes_VF.T.tocsr()
    for start in range(0, num_films, GRAM_ROWS):
        gram_FF[start : start + GRAM_ROWS] = (likes_FV[start : start + GRAM_ROWS] @ likes_VF).toarray()
    return gram_FF


def _inverse(matrix_FF: Tensor) -> Tensor:
    """Inverse of a symmetric positive definite matrix, on one thread: on two, the last bits come out differently."""
    with one_thread():
        return torch.cholesky_inverse(torch.linalg.cholesky(matrix_FF))
