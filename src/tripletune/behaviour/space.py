# Shape letters in this file: M films, S films in both spaces, D vector width
"""Film vectors, and the one space in which an adapter reads them.

Fits are trained apart, and again by each run: the same film has another vector in each, turned and mirrored at random.
A projector that was trained on one fit's vectors would read noise in another's, so these are turned first, by the
orthogonal map that brings the shared films closest (Schönemann, Psychometrika 1966). The adapter keeps the vectors it
was trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from tripletune.contract import BehaviourSpace
from tripletune.errors import ContractError, InputError, MissingArtifactError
from tripletune.models.lightgcn.serve import load_lightgcn
from tripletune.models.rgat.serve import load_rgat
from tripletune.models.sequence.serve import load_sequence
from tripletune.threads import one_thread

SPACE = "behaviour_space.safetensors"
"""In the adapter's folder: the film vectors that its projector was trained on."""
LEAST_COSINE = 0.3
"""Least mean cosine of the shared films after the map. Of the fits of one run on MovieLens they have .55 to .74; of
vectors drawn at random, .06 with 10,000 films and .15 with 1,700."""


@dataclass(frozen=True, slots=True)
class FilmVectors:
    """Vectors of unit length, by ascending movie id."""

    movie_ids_M: npt.NDArray[np.int64]
    vectors_MD: Tensor
    """float32."""
    space: str
    """SHA-256 of the vectors that define the space: these, or those that these were aligned to."""

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.vectors_MD.shape[1])


@dataclass(frozen=True, slots=True)
class Aligned:
    """Vectors in another's space, and how well they fit in."""

    vectors: FilmVectors
    cosine: float
    """Mean over the shared films, after the map."""
    shared: int


def read_vectors(folder: Path, source: str, fit: str) -> FilmVectors:
    """The film vectors of a trained model, as their own space.

    Args:
        folder: of the stage ``source``.
        source: ``sequence``, ``lightgcn`` or ``rgat``.
        fit: ``a`` or ``b``.

    Raises:
        InputError: a file is missing, damaged or not finite.
    """
    if source == "rgat":
        rgat = load_rgat(folder, 0, (fit,))[fit]
        catalogue, vectors_MD = rgat.catalogue, rgat.pool_vectors_MD
    else:
        loaded = (load_sequence if source == "sequence" else load_lightgcn)(folder, 0, (fit,))[fit]
        catalogue, vectors_MD = loaded.catalogue, loaded.movie_vectors_MD
    order_M = np.argsort(catalogue.ids_M)
    vectors_MD = functional.normalize(vectors_MD[torch.from_numpy(order_M)].float(), dim=1)
    return _defining(catalogue.ids_M[order_M], vectors_MD)


def align(vectors: FilmVectors, reference: FilmVectors) -> Aligned:
    """Turn vectors into the space of others; the map is found on the films that both have.

    Raises:
        ContractError: the widths differ, too few films are in both, or they don't fit together after the map either.
    """
    if vectors.space == reference.space:
        return Aligned(vectors, 1.0, len(vectors.movie_ids_M))
    if vectors.width != reference.width:
        raise ContractError(
            f"film vectors have width {vectors.width}, and the adapter's behaviour tokens were trained on vectors of "
            f"width {reference.width}; train the model with its old width, or run the finetune stage again"
        )
    _, ours_S, theirs_S = np.intersect1d(vectors.movie_ids_M, reference.movie_ids_M, return_indices=True)
    if len(ours_S) < vectors.width:
        raise ContractError(
            f"{len(ours_S)} films are in both these film vectors and those that the adapter's behaviour tokens were "
            f"trained on, fewer than the {vectors.width} that a map needs; run the finetune stage again"
        )
    with one_thread():  # the same bits for any number of threads
        ours_SD = vectors.vectors_MD[torch.from_numpy(ours_S)].double()
        theirs_SD = reference.vectors_MD[torch.from_numpy(theirs_S)].double()
        left, _, right = torch.linalg.svd(ours_SD.T @ theirs_SD)
        turned_MD = vectors.vectors_MD.double() @ (left @ right)
        cosine = float((turned_MD[torch.from_numpy(ours_S)] * theirs_SD).sum(dim=1).mean())
    if cosine < LEAST_COSINE:
        raise ContractError(
            f"film vectors do not fit those that the adapter's behaviour tokens were trained on: after the best map "
            f"the mean cosine of {len(ours_S)} shared films is {cosine:.2f}, below {LEAST_COSINE}; run the finetune "
            "stage again"
        )
    return Aligned(FilmVectors(vectors.movie_ids_M, turned_MD.float(), reference.space), cosine, len(ours_S))


def vectors_for(adapter: Path, space: BehaviourSpace, folder_of: Callable[[str], Path]) -> FilmVectors:
    """A run's film vectors in the space of an adapter, for ranking.

    Args:
        adapter: folder of a finetune stage.
        space: of its contract.
        folder_of: the run's folder of a stage.

    Raises:
        MissingArtifactError: the adapter or the run lacks the vectors.
        ContractError: the adapter's file is not that of its contract, or the run's vectors do not fit it.
    """
    reference = load_vectors(adapter / SPACE)
    require_space(reference, space)
    return align(read_vectors(folder_of(space.source), space.source, "b"), reference).vectors


def require_space(vectors: FilmVectors, space: BehaviourSpace) -> None:
    """Refuse vectors of another space: a projector would read noise in them.

    Raises:
        ContractError: they are.
    """
    if vectors.space != space.space:
        raise ContractError(
            f"film vectors are of the space {vectors.space[:12]}, and the adapter's behaviour tokens were trained in "
            f"{space.space[:12]}; turn them into it first (tripletune.behaviour.space.align)"
        )


def save_vectors(path: Path, vectors: FilmVectors) -> None:
    """Write ``movie_ids`` and ``vectors``."""
    save_file({"movie_ids": torch.from_numpy(vectors.movie_ids_M), "vectors": vectors.vectors_MD}, path)


def load_vectors(path: Path) -> FilmVectors:
    """Read what ``save_vectors`` wrote, as its own space.

    Raises:
        MissingArtifactError: there is none. InputError: it is damaged.
    """
    try:
        tensors = load_file(path)
        return _defining(tensors["movie_ids"].numpy(), tensors["vectors"])
    except FileNotFoundError:
        raise MissingArtifactError(f"{path} is missing; produce it with: tripletune finetune") from None
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}); run the finetune stage again") from None


def _defining(movie_ids_M: npt.NDArray[np.int64], vectors_MD: Tensor) -> FilmVectors:
    digest = hashlib.sha256(np.ascontiguousarray(movie_ids_M, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(vectors_MD.numpy(), dtype="<f4").tobytes())
    return FilmVectors(movie_ids_M, vectors_MD, digest.hexdigest())
