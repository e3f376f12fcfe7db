"""Channels by which users find films, each a distribution over films: a taste, an epoch's trend, a preferred entity.

Each is a table of ``slots`` films in which a film occurs in proportion to its probability, so that a draw is one
look-up and the likelihood of a draw is exactly a count over ``slots``.
"""

# Shape letters in this file:
#   M films, K tastes, E epochs, N planted entities, C = K + E + N channels in this order, T slots
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tripletune.synthetic.sizes import Size
from tripletune.synthetic.world import EPOCHS_PER_YEAR, Catalogue, Entity, FloatArray, carriers, planted_entities

MOODS, STYLES = 12, 8
"""Positions on the two circles of taste: a mood prefers one genre, a style the films near its own position."""
TASTES = MOODS * STYLES
_MOOD_PULL, _STYLE_PULL = 4.5, 12.0
"""Log-odds that a taste adds to films of its genre, and to films of its style over those of the opposite one."""
_TREND_SPREAD, _TREND_MEMORY = 1.3, 0.8
_NOVELTY, _NOVELTY_FADES = 6.0, 3.0
"""Extra weight of a film in the trend when it comes out, and the epochs in which that fades."""
_MAX_ENTITY_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Channels:
    """Tables of film numbers, one per channel.

    ``carries_NM``: which films carry an entity; ``share_N``: share of viewings through the entity's channel for users
    who prefer it; ``released_M``: first epoch in which a film can be watched.
    """

    table_CT: npt.NDArray[np.int32]
    entities: list[Entity]
    carries_NM: npt.NDArray[np.bool_]
    share_N: FloatArray
    released_M: npt.NDArray[np.int64]
    num_epochs: int

    @property
    def num_movies(self) -> int:
        """Films, M."""
        return len(self.released_M)


def build_channels(catalogue: Catalogue, size: Size, rng: np.random.Generator) -> Channels:
    """Build the tables of tastes, then epochs, then planted entities."""
    entities = planted_entities(catalogue, size)
    carries_NM = carriers(catalogue, entities)
    slots = 1 << (18 if catalogue.num_movies > 20_000 else 16)
    num_epochs = (size.last_day.year - size.first_day.year + 1) * EPOCHS_PER_YEAR
    base_M = np.exp(catalogue.logit_M)
    base_M /= base_M.sum()
    table_CT = np.empty((TASTES + num_epochs + len(entities), slots), dtype=np.int32)
    for taste in range(TASTES):
        table_CT[taste] = _fill(base_M * _pull(catalogue, taste), slots, rng)
    noise_M = rng.normal(0.0, _TREND_SPREAD, catalogue.num_movies)
    for epoch in range(num_epochs):
        step_M = rng.normal(0.0, _TREND_SPREAD * np.sqrt(1.0 - _TREND_MEMORY**2), catalogue.num_movies)
        noise_M = _TREND_MEMORY * noise_M + step_M
        table_CT[TASTES + epoch] = _fill(base_M * _talk(catalogue, epoch) * np.exp(noise_M), slots, rng)
    for place, carries_M in enumerate(carries_NM, start=TASTES + num_epochs):
        table_CT[place] = _fill(base_M * carries_M, slots, rng)
    odds = np.exp(size.strength) - 1.0
    mass_N = carries_NM @ base_M
    share_N = np.minimum(odds * mass_N / (1.0 + odds * mass_N), _MAX_ENTITY_SHARE)
    return Channels(table_CT, entities, carries_NM, share_N, catalogue.released_M, num_epochs)


def _pull(catalogue: Catalogue, taste: int) -> FloatArray:
    mood, style = divmod(taste, STYLES)
    near_M = np.cos(2.0 * np.pi * (catalogue.style_M - style / STYLES)) / 2.0
    pulled: FloatArray = np.exp(_MOOD_PULL * catalogue.genres_MG[:, mood] + _STYLE_PULL * near_M)
    return pulled


def _talk(catalogue: Catalogue, epoch: int) -> FloatArray:
    """Trend weight per film: zero before its release, highest at it. Films older than the period have no peak."""
    age_M = epoch - catalogue.released_M
    fresh_M = (catalogue.released_M > 0) * np.exp(-np.maximum(age_M, 0) / _NOVELTY_FADES)
    talked: FloatArray = (age_M >= 0) * (1.0 + _NOVELTY * fresh_M)
    return talked


def _fill(weight_M: FloatArray, slots: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Films in proportion to their weights, rounded up or down so that the total is ``slots``. Shape (T,)."""
    upto_M = np.cumsum(weight_M)
    edges_M = np.floor(upto_M * (slots / upto_M[-1]) + rng.random()).astype(np.int64)
    edges_M[upto_M == upto_M[-1]] = slots  # despite rounding, no film without weight gets a slot
    return np.repeat(np.arange(len(weight_M)), np.diff(edges_M, prepend=0))
