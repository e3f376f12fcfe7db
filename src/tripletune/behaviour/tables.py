# Shape letters in this file: R rows, D vector width
"""The film vectors of a training: those of fit a for its examples, and of fit b, in the same space, for valid's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tripletune.behaviour.embedding import with_unknown
from tripletune.behaviour.tokens import UNKNOWN, BehaviourTokens
from tripletune.schemas.query import FIT_OF

if TYPE_CHECKING:
    from tripletune.behaviour.space import FilmVectors

FILMS = "films.safetensors"


@dataclass(frozen=True, slots=True)
class FilmTables:
    """Rows of both fits, one after the other."""

    vectors_RD: Tensor
    """Row ``tokens.UNKNOWN`` is all zeros."""
    movie_ids: dict[str, list[int]]
    """Of each fit's rows."""

    def tokens(self, purpose: str, tokenizer: Any, columns: Sequence[str], source: str) -> BehaviourTokens:
        """Behaviour tokens of a purpose's prompts; arguments as of ``BehaviourTokens``."""
        first_row = UNKNOWN + 1 + (0 if FIT_OF[purpose] == "a" else len(self.movie_ids["a"]))
        return BehaviourTokens(tokenizer, self.movie_ids[FIT_OF[purpose]], first_row, columns, source)


def write_film_tables(path: Path, first: FilmVectors, second: FilmVectors) -> None:
    """Write the vectors of fit a and of fit b, which must be in one space."""
    tensors = {}
    for fit, vectors in (("a", first), ("b", second)):
        tensors[f"movie_ids_{fit}"] = torch.from_numpy(vectors.movie_ids_M)
        tensors[f"vectors_{fit}"] = vectors.vectors_MD
    save_file(tensors, path)


def read_film_tables(path: Path) -> FilmTables:
    """Read what ``write_film_tables`` wrote."""
    tensors = load_file(path)
    vectors_RD = with_unknown(tensors["vectors_a"], tensors["vectors_b"])
    return FilmTables(vectors_RD, {fit: tensors[f"movie_ids_{fit}"].tolist() for fit in ("a", "b")})
