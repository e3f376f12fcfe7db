# Shape letters in this file:
#   U users, M films, D vector width, E events
"""The sequence model for retrieval: film vectors, and a user's vector from the newest ratings.

There is no user table: a user outside the fit gets a vector like any other, and a new rating counts at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tripletune.errors import InputError
from tripletune.models.sequence.encode import encode
from tripletune.models.sequence.events import Events, to_level
from tripletune.models.sequence.model import EventModel, Shape
from tripletune.models.serving.catalogue import Catalogue, in_catalogue_order, read_table, read_tensors
from tripletune.models.serving.retriever import Histories, RetrieverSpec, Serving
from tripletune.models.serving.topk import Ints, product_blocks, top_columns
from tripletune.threads import one_thread

BY_FILM = ("embedding_MD", "output_MD", "bias_M")
"""Tensors with a row per film."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceFit:
    """One fit: score of a film = <user, ``movie_vectors``> + ``bias``."""

    catalogue: Catalogue
    model: EventModel
    """Its films are in the catalogue's order."""
    levels_R: npt.NDArray[np.float32]
    """Levels of stars, as in training."""
    only_likes: bool
    movie_vectors_MD: Tensor

    def users(self, histories: Histories) -> Tensor:
        """User vectors (U, D) from the newest events of films in the catalogue; zeros for a user without any."""
        given = histories.events.take(histories.events.like_E) if self.only_likes else histories.events
        column_E = self.catalogue.columns(given.movie_E)
        known_E = np.flatnonzero(column_E >= 0)
        user_E = given.user_E[known_E]
        events = Events(
            count_U=torch.from_numpy(np.bincount(user_E, minlength=histories.num_users)),
            movie_E=torch.from_numpy(column_E[known_E]),
            level_E=torch.from_numpy(to_level(given.rating_E[known_E], self.levels_R)),
            time_E=torch.from_numpy(given.time_E[known_E]),
            like_E=torch.from_numpy(given.like_E[known_E]),
            asked_U=None if histories.asked_U is None else torch.from_numpy(histories.asked_U),
        )
        return encode(self.model, self.model.embedding_MD, events)

    def top(self, name: str, histories: Histories, depth: int) -> Ints:
        """``Ranker.top``: films by score."""
        blocks = product_blocks(self.users(histories), self.movie_vectors_MD, self.model.bias_M)
        return top_columns(blocks, histories.num_users, histories.seen, depth)[0]


def load_sequence(folder: Path, seed: int, fits: Iterable[str] = ("a", "b")) -> dict[str, SequenceFit]:
    """Read the sequence model's fits.

    Raises:
        InputError: a file is missing, damaged, not finite, or does not belong to the others.
    """
    catalogue = Catalogue(read_table(folder / "movies.parquet").sort("row")["movie_id"].to_numpy(), seed)
    shape, levels_R, only_likes = _read_shape(folder / "model.json", len(catalogue))
    found = {}
    for fit in fits:
        model = _load(folder / f"fit_{fit}.safetensors", catalogue, shape)
        with torch.no_grad(), one_thread():
            vectors_MD = model.targets(model.scored_MD).contiguous()
        found[fit] = SequenceFit(
            catalogue=catalogue, model=model, levels_R=levels_R, only_likes=only_likes, movie_vectors_MD=vectors_MD
        )
    return found


def _load(path: Path, catalogue: Catalogue, shape: Shape) -> EventModel:
    model = EventModel(shape, torch.Generator().manual_seed(0))
    wanted = model.state_dict()
    tensors = read_tensors(path, tuple(wanted))
    by_film = {name: tensors[name] for name in BY_FILM if name in wanted}
    tensors |= in_catalogue_order(path, by_film, catalogue)
    for name, want in wanted.items():
        if tensors[name].shape != want.shape:
            raise InputError(
                f"{path}: '{name}' has shape {tuple(tensors[name].shape)}, by model.json next to it "
                f"{tuple(want.shape)}; train sequence again"
            )
    model.load_state_dict(tensors)
    return model.requires_grad_(False)


def _read_shape(path: Path, num_movies: int) -> tuple[Shape, npt.NDArray[np.float32], bool]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        levels_R = np.asarray(values["ratings"], dtype=np.float32)
        only_likes = values["events"] == "likes"
        given = {field.name: values[field.name] for field in fields(Shape)} | {"num_movies": num_movies}
        shape = TypeAdapter(Shape).validate_python(given)
        if shape.num_levels != len(levels_R):
            raise ValueError(f"{shape.num_levels} levels of {len(levels_R)} ratings")
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{first['loc'][0]}: {first['msg']}"
        raise InputError(f"{path} must describe the sequence model ({wrong}); train sequence again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} must describe the sequence model ({error}); train sequence again") from None
    return shape, levels_R, only_likes


def _load_rankers(folder: Path, serving: Serving) -> dict[str, SequenceFit]:
    fits = load_sequence(folder, serving.seed, serving.fits)
    if any(fit.catalogue.ids_M.tolist() != serving.catalogue.ids_M.tolist() for fit in fits.values()):
        raise InputError("sequence and lightgcn were trained on different films; pin both to one run, or neither")
    return fits


RETRIEVER = RetrieverSpec(name="sequence", lists=("sequence",), load=_load_rankers)
