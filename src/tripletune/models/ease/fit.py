# Shape letters in this file:
#   V users of the fit, F films of the model, E likes
"""Fit EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019) in closed form: the stage ``ease``.

A film's score is a history times a matrix of film by film weights without a diagonal, the ridge regression of every
film's likes on those of all others: with ``P = (X'X + lambda I)^-1`` the weight from film i to film j is
``-P_ij / P_jj``. The rows of ``X`` are the likes of one fit, equally weighted; only retrieval weights a user's history.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors.torch import save_file
from scipy import sparse
from torch import Tensor

from tripletune.config import RetrieveConfig
from tripletune.errors import InputError
from tripletune.models.training.loop import write_table
from tripletune.schemas.base import conform
from tripletune.schemas.ease import EASE_FILMS
from tripletune.schemas.query import FIT_LABELS
from tripletune.schemas.training import TRAINED_ON
from tripletune.stable_hash import tie_order
from tripletune.store.files import write_atomically
from tripletune.store.meter import claim_memory
from tripletune.store.paths import Facts
from tripletune.store.read import scan_parquet
from tripletune.store.shards import split_files
from tripletune.threads import one_thread

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

BYTES_PER_WEIGHT = 28
"""Memory at the peak of a fit: the matrix, its factor and its inverse in float64, and the weights in float32."""
GRAM_ROWS = 512
"""Rows of ``X'X`` computed at a time, so that no sparse copy of the whole exists."""


def train_ease(split: Path, out: Path, settings: RetrieveConfig, seed: int) -> Facts:
    """Fit EASE to the likes of warm users, one fit after the other, and write the stage's files.

    Where EASE makes candidates, both fits have the ``ease_max_films`` most liked films. Otherwise it is a baseline of
    the comparison: fit b alone, and none when more films than that are liked.

    Args:
        split: output of the split stage.
        out: work folder; gets for each fit ``fit_<fit>.safetensors`` (``weights`` (F, F), from the film of the row to
            the film of the column, and ``likes`` (F,)), and ``movies.parquet``, ``trained_on.parquet``.
        settings: section ``[retrieve]``: ``ease_lambda``, ``ease_max_films``, and whether EASE makes candidates.
        seed: of the run; it orders equally liked films at the limit.

    Returns:
        Films and likes of each fit.

    Raises:
        InputError: the split holds nothing to fit to, or there is not enough memory.
    """
    makes_candidates = "ease" in settings.lists
    films, trained_on = [EASE_FILMS.to_frame()], [TRAINED_ON.to_frame()]
    for fit in ("a", "b") if makes_candidates else ("b",):
        likes = _read_likes(split, fit)
        ids_F, count_F = most_liked(likes["movie_id"].to_numpy(), settings.ease_max_films, seed)
        if not makes_candidates and len(count_F) < likes["movie_id"].n_unique():
            break
        kept = likes.filter(pl.col("movie_id").is_in(ids_F)).sort("user_id", "movie_id")
        require_memory(len(ids_F))
        weights_FF = solve(_matrix(kept, ids_F), settings.ease_lambda)
        films.append(write_weights(out, fit, ids_F, count_F, weights_FF))
        trained_on.append(conform(kept.with_columns(fit=pl.lit(fit)), TRAINED_ON))
    write_table(pl.concat(films), out / "movies.parquet")
    write_table(pl.concat(trained_on), out / "trained_on.parquet")
    return {
        "films": {part["fit"][0]: len(part) for part in films[1:]},
        "likes": {part["fit"][0]: len(part) for part in trained_on[1:]},
    }


def require_memory(num_films: int) -> None:
    """Log the memory that a fit needs, and refuse a fit that exceeds it.

    Raises:
        InputError: less memory is free.
    """
    claim_memory(f"EASE on {num_films:,} films", num_films**2 * BYTES_PER_WEIGHT, "lower retrieve.ease_max_films")


def write_weights(
    out: Path, fit: str, ids_F: Ints, count_F: Ints, weights_FF: Floats, **further: Tensor
) -> pl.DataFrame:
    """Write the file of a fit, with ``further`` tensors; its rows of ``movies.parquet``."""
    tensors = {"likes": torch.from_numpy(count_F.astype(np.float32)), "weights": torch.from_numpy(weights_FF)}
    write_atomically(out / f"fit_{fit}.safetensors", functools.partial(save_file, tensors | further))
    return conform(pl.DataFrame({"fit": fit, "row": np.arange(len(ids_F)), "movie_id": ids_F}), EASE_FILMS)


def _read_likes(split: Path, fit: str) -> pl.DataFrame:
    """The rows of a fit, ``user_id, movie_id``."""
    files = list(split_files(split).values())
    of_fit = pl.col("label").is_in(FIT_LABELS[fit]) & ~pl.col("unseen")
    scan = scan_parquet(files, hive_partitioning=False).filter(of_fit).select("user_id", "movie_id")
    likes = scan.collect(engine="streaming")
    if likes.is_empty():
        raise InputError(f"{split} has no 'graph' like of a user who is not unseen; lower split.like or min_graph")
    return likes


def most_liked(movie_E: npt.NDArray[np.int32], num: int, seed: int) -> tuple[Ints, Ints]:
    """Ids and like counts of the ``num`` most liked films, in the order of ties."""
    ids_M, count_M = np.unique(movie_E.astype(np.int64), return_counts=True)
    order_M = tie_order(ids_M, seed)
    ids_M, count_M = ids_M[order_M], count_M[order_M].astype(np.int64)
    kept_F = np.sort(np.argsort(-count_M, kind="stable")[:num])
    return ids_M[kept_F], count_M[kept_F]


def _matrix(likes: pl.DataFrame, ids_F: Ints) -> sparse.csr_array:
    """Sparse matrix (V, F), 1 where a user liked a film; likes are sorted by user and all of films of the model."""
    by_id_F = np.argsort(ids_F)
    movie_E = likes["movie_id"].to_numpy()
    column_E = by_id_F[np.searchsorted(ids_F[by_id_F], movie_E)]
    counts_V = likes.group_by("user_id", maintain_order=True).len()["len"].to_numpy()
    starts_V = np.concatenate([[0], np.cumsum(counts_V)])
    return sparse.csr_array((np.ones(len(column_E)), column_E, starts_V), shape=(len(counts_V), len(ids_F)))


def solve(likes_VF: sparse.csr_array, ridge: float) -> Floats:
    """The weights (F, F); the diagonal is 0."""
    gram_FF = torch.from_numpy(gram(likes_VF))
    gram_FF.diagonal().add_(ridge)
    inverse_FF = inverse(gram_FF)
    # LAPACK's matrices are column-major; the sparse product would transpose them for every block
    weights_FF = inverse_FF.div_(-inverse_FF.diagonal().clone()).float().contiguous()
    weights_FF.fill_diagonal_(0.0)
    return weights_FF.numpy()


def gram(likes_VF: sparse.csr_array) -> npt.NDArray[np.float64]:
    """``X'X``: how many users liked both films. Whole numbers, so the order of the sums does not matter."""
    num_films = likes_VF.shape[1]
    gram_FF = np.empty((num_films, num_films))
    likes_FV = likes_VF.T.tocsr()
    for start in range(0, num_films, GRAM_ROWS):
        gram_FF[start : start + GRAM_ROWS] = (likes_FV[start : start + GRAM_ROWS] @ likes_VF).toarray()
    return gram_FF


def inverse(matrix_FF: Tensor) -> Tensor:
    """Inverse of a symmetric positive definite matrix, on one thread: on two, the last bits differ."""
    with one_thread():
        return torch.cholesky_inverse(torch.linalg.cholesky(matrix_FF))
