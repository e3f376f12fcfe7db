# Shape letters in this file:
#   V users of the fit, F films of the model, E likes, R likes with an earlier one of the same user, P pairs of likes,
#   B rows of one block
"""Fit SLIST (Choi et al., "Session-aware Linear Item-Item Models", WWW 2021) in closed form: the stage ``slist``.

EASE regresses every film on the films that the same user liked, in whatever order. SLIST adds a second regression with
the same weights ``B``: the next film on the ones before it, the newest of which count most (one target per row, as in
TALE, Park et al., WSDM 2025). With ``k`` its share and ``r`` the ridge, ``B`` minimises

    |X - XB|^2 + k |T - SB|^2 + r |B|^2    with a diagonal of zeros,

``X`` (V, F) the likes, row i of ``T`` (R, F) one like and of ``S`` (R, F) the same user's earlier ones,
``exp(-(t - 1) / next_age)`` for the t-th before it. With ``P = (X'X + k S'S + r I)^-1`` and ``Q = P (X'X + k S'T)`` the
weight from film i to film j is ``Q_ij - P_ij Q_jj / P_jj``; it is then divided by ``likes_j ^ popularity_power``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from scipy import sparse

from tripletune.config import SlistConfig
from tripletune.models.ease.fit import gram, inverse, most_liked, write_weights
from tripletune.models.serving.topk import Floats, Ints
from tripletune.models.training.interactions import Likes, read_interactions
from tripletune.models.training.loop import write_table
from tripletune.schemas.base import conform
from tripletune.schemas.training import TRAINED_ON
from tripletune.store.meter import claim_memory
from tripletune.store.paths import Facts
from tripletune.threads import map_blocks

BYTES_PER_WEIGHT = 36
"""Memory at the peak of a fit: both sides of the equations, the factor and the inverse in float64; float32 weights."""
LEAST_WEIGHT = 2.0**-20
"""Pairs of likes so far apart that they would count less are dropped."""
PAIRS = 1 << 22
"""Likes whose pairs are added up at a time."""
ROWS = 512
"""Rows of the product computed at a time, on one thread."""


def train_slist(split: Path, out: Path, settings: SlistConfig, seed: int) -> Facts:
    """Fit both fits on a split and write the stage's files.

    Args:
        split: output of the split stage.
        out: work folder; gets EASE's files (``train_ease``), each fit with ``history_age`` (1,).
        settings: section ``[slist]``.
        seed: of the run; it orders equally liked films at the limit.

    Returns:
        Films and likes of each fit.

    Raises:
        InputError: the split holds nothing to fit to, or there is not enough memory.
    """
    interactions = read_interactions(split)
    age = torch.tensor([settings.history_age])
    films, trained_on = [], []
    for fit, likes in interactions.fits.items():
        movie_E = interactions.movie_ids_M[likes.movie_E.numpy()]
        ids_F, count_F = most_liked(movie_E, settings.max_films, seed)
        claim_memory(f"SLIST on {len(ids_F):,} films", len(ids_F) ** 2 * BYTES_PER_WEIGHT, "lower slist.max_films")
        user_E, place_E = _of_films(likes, movie_E, ids_F)
        weights_FF = solve(user_E, place_E, count_F, settings)
        films.append(write_weights(out, fit, ids_F, count_F, weights_FF, history_age=age))
        kept = pl.DataFrame({"user_id": likes.user_ids_U[user_E], "movie_id": ids_F[place_E]})
        trained_on.append(conform(kept.with_columns(fit=pl.lit(fit)), TRAINED_ON))
    write_table(pl.concat(films), out / "movies.parquet")
    write_table(pl.concat(trained_on), out / "trained_on.parquet")
    return {
        "films": {part["fit"][0]: len(part) for part in films},
        "likes": {part["fit"][0]: len(part) for part in trained_on},
    }


def _of_films(likes: Likes, movie_E: npt.NDArray[np.int32], ids_F: Ints) -> tuple[Ints, Ints]:
    """User and place in ``ids_F`` of the likes of these films; users in order, each one's oldest first."""
    by_id_F = np.argsort(ids_F)
    found_E = np.minimum(np.searchsorted(ids_F[by_id_F], movie_E), len(ids_F) - 1)
    place_E = by_id_F[found_E]
    known_E = ids_F[place_E] == movie_E
    return likes.user_E.numpy()[known_E], place_E[known_E]


def solve(user_E: Ints, place_E: Ints, count_F: Ints, settings: SlistConfig) -> Floats:
    """The weights (F, F); the diagonal is 0.

    Args:
        user_E: users, numbered from 0, in order.
        place_E: films, each user's oldest first.
        count_F: likes of each film, all above 0.
        settings: section ``[slist]``.
    """
    num_films = len(count_F)
    shape = (int(user_E[-1]) + 1, num_films)
    target_FF = gram(sparse.csr_array((np.ones(len(user_E)), (user_E, place_E)), shape=shape))
    source_FF = target_FF.copy()
    if settings.next_weight:
        add_next(source_FF, target_FF, user_E, place_E, settings.next_weight, settings.next_age)
    source_FF[np.diag_indices(num_films)] += settings.ridge
    inverse_FF = inverse(torch.from_numpy(source_FF))
    del source_FF
    weights_FF = np.empty((num_films, num_films), dtype=np.float32)
    wanted_FF = torch.from_numpy(target_FF)
    # Q_jj / P_jj first: each block of rows needs it for all columns
    diagonal_F = torch.from_numpy(np.einsum("ij,ji->i", inverse_FF.numpy(), target_FF)) / inverse_FF.diagonal()
    scale_F = torch.from_numpy(count_F.astype(np.float64) ** -settings.popularity_power)

    def rows(block: int) -> Floats:
        part_BF = inverse_FF[block * ROWS : (block + 1) * ROWS]
        found: Floats = ((part_BF @ wanted_FF - part_BF * diagonal_F) * scale_F).float().numpy()
        return found

    for block, found_BF in enumerate(map_blocks(rows, -(-num_films // ROWS))):
        weights_FF[block * ROWS : (block + 1) * ROWS] = found_BF
    np.fill_diagonal(weights_FF, 0.0)
    return weights_FF


def add_next(
    source_FF: npt.NDArray[np.float64],
    target_FF: npt.NDArray[np.float64],
    user_E: Ints,
    place_E: Ints,
    weight: float,
    age: float,
) -> None:
    """Add ``weight`` times ``S'S`` to ``source_FF`` and times ``S'T`` to ``target_FF``, without ``S``.

    With ``d = exp(-1 / age)``, two likes a and b of a user, b the newer by ``lag``, stand together in the row of each
    like after b, ``d^(2 i + lag)`` in the i-th of them (from 0): with n such rows ``d^lag (1 - d^2n) / (1 - d^2)`` in
    all. In the row of b alone, a counts ``d^(lag - 1)`` for b.
    """
    decay, num_films = np.exp(-1.0 / age), len(source_FF)
    newer_E = np.bincount(user_E)[user_E] - 1 - _places(user_E)
    rows_E = weight * (1.0 - decay ** (2.0 * newer_E)) / (1.0 - decay**2)
    source_flat, target_flat = source_FF.reshape(-1), target_FF.reshape(-1)
    for lag in range(int(np.log(LEAST_WEIGHT) / np.log(decay)) + 1):
        for start in range(0, len(user_E) - lag, PAIRS):
            stop = min(start + PAIRS, len(user_E) - lag)
            first_P = start + np.flatnonzero(user_E[start:stop] == user_E[start + lag : stop + lag])
            old_P, new_P = place_E[first_P], place_E[first_P + lag]
            together_P = decay**lag * rows_E[first_P + lag]
            np.add.at(source_flat, old_P * num_films + new_P, together_P)
            if lag:
                np.add.at(source_flat, new_P * num_films + old_P, together_P)
                np.add.at(target_flat, old_P * num_films + new_P, weight * decay ** (lag - 1))


def _places(user_E: Ints) -> Ints:
    """Place of each like among its user's, from 0."""
    starts_V = np.flatnonzero(np.diff(user_E, prepend=-1))
    counts_V = np.diff(starts_V, append=len(user_E))
    places_E: Ints = np.arange(len(user_E)) - np.repeat(starts_V, counts_V)
    return places_E
