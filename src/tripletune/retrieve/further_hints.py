# Shape letters in this file: U queries, K candidates, F films of a hint
"""Hints beyond LightGCN's and R-GAT's: each is computed by the module that its declaration names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from tripletune.config import RetrieveConfig
from tripletune.models.lightgcn.serve import LightGCNFit
from tripletune.models.serving.retriever import Histories
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.similar import Neighbours
from tripletune.schemas.hints import FILM_HINTS


@dataclass(frozen=True, slots=True, kw_only=True)
class HintInputs:
    """What a hint may be computed from: rows before the cutoffs, and one fit."""

    candidates_UK: Ints
    """Columns of LightGCN's catalogue in the retriever's order; -1 pads."""
    histories: Histories
    lightgcn: LightGCNFit
    neighbours: Neighbours
    """Likes that the fit was trained on, by user and film."""
    settings: RetrieveConfig


def compute_hints(inputs: HintInputs) -> dict[str, Ints]:
    """By hint, columns (U, F) of LightGCN's catalogue; -1 at the end of shorter rows.

    A hint's module has ``films(inputs: HintInputs) -> Ints``.
    """
    found = {}
    for hint in FILM_HINTS:
        if hint.computed_by:
            films: Callable[[HintInputs], Ints] = importlib.import_module(
                f"tripletune.retrieve.{hint.computed_by}"
            ).films
            found[hint.name] = films(inputs)
    return found
