# Shape letters in this file:
#   U users, M films, D vector width, E likes
"""SASRec for retrieval: film vectors, and a user's vector from the newest likes.

There is no user table: a user outside the fit gets a vector like any other, and a new like counts at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tripletune.errors import InputError
from tripletune.models.sasrec.model import SASRec, Shape
from tripletune.models.serving.catalogue import Catalogue, Likes, in_catalogue_order, read_table, read_tensors
from tripletune.models.serving.retriever import Histories, RetrieverSpec, Serving
from tripletune.models.serving.topk import Ints, product_blocks, top_columns


@dataclass(frozen=True, slots=True, kw_only=True)
class SasrecFit:
    """One fit: score of a film = <user, ``movie_vectors``> + ``bias``."""

    catalogue: Catalogue
    model: SASRec
    """Its films are in the catalogue's order."""

    @property
    def movie_vectors_MD(self) -> Tensor:
        """The films' vectors, float32."""
        return self.model.embedding_MD.detach()

    @property
    def bias_M(self) -> Tensor:
        """The films' biases, float32."""
        return self.model.bias_M.detach()

    def users(self, likes: Likes, num_viewers: int) -> Tensor:
        """User vectors (U, D) from the newest likes of films in the catalogue; zeros for a user without any.

        Args:
            likes: in any order; within a user all ages differ.
        """
        column_E = self.catalogue.columns(likes.movie_E)
        known_E = np.flatnonzero(column_E >= 0)
        oldest_first_E = known_E[np.lexsort((-likes.age_E[known_E], likes.user_E[known_E]))]
        user_E, row_E = torch.from_numpy(likes.user_E[oldest_first_E]), torch.from_numpy(column_E[oldest_first_E])
        return self.model.encode(user_E, row_E, num_viewers)

    def top(self, name: str, histories: Histories, depth: int) -> Ints:
        """``Ranker.top``: films by score."""
        users_UD = self.users(histories.likes, histories.num_users)
        blocks = product_blocks(users_UD, self.movie_vectors_MD, self.bias_M)
        return top_columns(blocks, histories.num_users, histories.seen, depth)[0]


def load_sasrec(folder: Path, seed: int, fits: Iterable[str] = ("a", "b")) -> dict[str, SasrecFit]:
    """Read SASRec's fits.

    Raises:
        InputError: a file is missing, damaged, not finite, or does not belong to the others.
    """
    catalogue = Catalogue(read_table(folder / "movies.parquet").sort("row")["movie_id"].to_numpy(), seed)
    shape = _shape(folder / "model.json", len(catalogue))
    return {fit: _load(folder / f"fit_{fit}.safetensors", catalogue, shape) for fit in fits}


def _load(path: Path, catalogue: Catalogue, shape: Shape) -> SasrecFit:
    model = SASRec(shape, torch.Generator().manual_seed(0))
    names = {"embedding_MD": "movie_vectors", "bias_M": "movie_bias"}
    names = {name: names.get(name, name) for name in model.state_dict()}
    tensors = read_tensors(path, tuple(names.values()))
    tensors |= in_catalogue_order(path, {name: tensors[name] for name in ("movie_vectors", "movie_bias")}, catalogue)
    for name, want in model.state_dict().items():
        have = tensors[names[name]]
        if have.shape != want.shape:
            raise InputError(
                f"{path}: '{names[name]}' has shape {tuple(have.shape)}, by model.json next to it {tuple(want.shape)}; "
                "train sasrec again"
            )
    model.load_state_dict({name: tensors[stored] for name, stored in names.items()})
    return SasrecFit(catalogue=catalogue, model=model.requires_grad_(False))


def _shape(path: Path, num_movies: int) -> Shape:
    names = ("dim", "layers", "heads", "max_length")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Shape(num_movies, *(int(values[name]) for name in names))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} must hold whole numbers {', '.join(names)} ({error}); train sasrec again") from None


def _load_rankers(folder: Path, serving: Serving) -> dict[str, SasrecFit]:
    fits = load_sasrec(folder, serving.seed, serving.fits)
    if any(fit.catalogue.ids_M.tolist() != serving.catalogue.ids_M.tolist() for fit in fits.values()):
        raise InputError("sasrec and lightgcn were trained on different films; pin both to one run, or neither")
    return fits


RETRIEVER = RetrieverSpec(name="sasrec", lists=("sasrec",), load=_load_rankers)
