"""Posterior of each planted preference given a history: the upper limit for any detector on synthetic data.

Inverts the generator (``synthetic/users.py``, ``synthetic/draw.py``) with its hidden variables summed out: the taste of
each session by the forward recursion of a hidden Markov chain, the user's generosity, and the channel of each film. A
history may be whole or only its beginning.

Exact, given the order of the ratings: a film's chance is the generator's own, over the films that are out and not yet
watched. The order of ratings of one second is not in the files; the rows' order is used instead, which changes
a likelihood by no more than the chance of a film or two.
"""

# Shape letters in this file:
#   M films, K tastes, E epochs of the period, N planted entities, H = N + 1 preferences (the last is none),
#   R ratings of a user, S sessions of a user, Q generosities
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.errors import InputError
from tripletune.synthetic.clock import epoch_of
from tripletune.synthetic.world import BoolArray, FloatArray, IntArray

_LIKE = 4.0
_SESSION_GAP = 8 * 3600
"""A pause of this many seconds or more begins a new session: ``synthetic.clock`` leaves nine hours between two, and its
pauses within one are seconds."""
_TRUTH = ("truth_movies", "truth_entities", "truth_channels")


class Oracle:
    """The generator's model, read from the ``truth_*`` files of a synthetic release; see ``synthetic/truth.py``.

    Args:
        release: the folder that ``tripletune synth`` wrote.

    Raises:
        InputError: the folder holds no such files.
    """

    def __init__(self, release: Path) -> None:
        for name in (*(f"{table}.parquet" for table in _TRUTH), "truth_model.json"):
            if not (release / name).is_file():
                raise InputError(f"{release} has no {name}; name a folder that `tripletune synth` wrote")
        self._model = json.loads((release / "truth_model.json").read_text(encoding="utf-8"))
        movies, self.entities, counts = (pl.read_parquet(release / f"{table}.parquet") for table in _TRUTH)
        counts = counts.with_columns(film=movies["movie_id"].search_sorted(counts["movie_id"]))
        self._movie_M = movies["movie_id"]
        self._quality_M = movies["like"].to_numpy()
        released_M = movies["epoch"].to_numpy()
        num_tastes = self._model["moods"] * self._model["styles"]
        self._taste = _Channel.build(counts, "taste", num_tastes, released_M, self._model)
        self._trend = _Channel.build(counts, "epoch", self._model["epochs"], released_M, self._model)
        self._entity = _Channel.build(counts, "entity", self.entities.height, released_M, self._model)
        carried = counts.filter(pl.col("channel") == "entity")
        self._carries_NM: BoolArray = np.zeros((self.entities.height, movies.height), dtype=bool)
        self._carries_NM[carried["number"].to_numpy(), carried["film"].to_numpy()] = True
        self._not_out_E = (released_M > np.arange(self._model["epochs"])[:, None]).mean(axis=1)
        prior_N = self.entities["prior"].to_numpy()
        self._prior_H = np.append(prior_N, 1.0 - prior_N.sum())
        self._step_KK = np.kron(*(_ring(self._model[circle], self._model["step"]) for circle in ("moods", "styles")))

    def posterior(self, ratings: pl.DataFrame) -> pl.DataFrame:
        """Posterior of each preference for each user of some ratings.

        Args:
            ratings: columns user_id, movie_id, rating and timestamp (schema RATINGS). Of each user the whole history
                or its beginning; ratings of one second stay in the order of the rows.

        Returns:
            user_id, kind, key (null for kind none) and probability, which sums to one per user; sorted by user, and
            then as ``entities``.

        Raises:
            InputError: a film is not of this release.
        """
        ordered = ratings.sort("user_id", "timestamp", maintain_order=True)
        film = self._movie_M.search_sorted(ordered["movie_id"]).to_numpy()
        known = self._movie_M.gather(np.minimum(film, len(self._movie_M) - 1)) == ordered["movie_id"]
        if not known.all():
            raise InputError(f"movie {ordered['movie_id'].filter(~known)[0]} is not a film of this synthetic release")
        liked, time = (ordered["rating"] >= _LIKE).to_numpy(), ordered["timestamp"].to_numpy()
        user = ordered["user_id"].to_numpy()
        firsts = np.flatnonzero(np.diff(user, prepend=user[:1] - 1))
        posts = [
            self._posterior(film[first:last], liked[first:last], time[first:last])
            for first, last in zip(firsts, np.append(firsts, len(user))[1:], strict=True)
        ]
        preferences = pl.concat(
            [self.entities.select("kind", "key"), pl.DataFrame({"kind": ["none"], "key": [None]})],
            how="vertical_relaxed",
        )
        return (
            pl.DataFrame({"user_id": ordered["user_id"].gather(firsts)})
            .join(preferences, how="cross", maintain_order="left_right")
            .with_columns(probability=np.concatenate(posts) if posts else np.empty(0))
        )

    def _posterior(self, film_R: IntArray, liked_R: BoolArray, time_R: IntArray) -> FloatArray:
        """Posterior of one user's preferences. Shape (H,)."""
        log_H = np.log(self._prior_H) + self._log_watched(film_R, time_R) + self._log_liked(film_R, liked_R)
        weight_H = np.exp(log_H - log_H.max())
        posterior_H: FloatArray = weight_H / weight_H.sum()
        return posterior_H

    def _log_watched(self, film_R: IntArray, time_R: IntArray) -> FloatArray:
        """Log-likelihood of the sequence of films under each preference. Shape (H,)."""
        opens_R = np.append(True, np.diff(time_R) >= _SESSION_GAP)
        begin_S = np.flatnonzero(opens_R)
        epoch_S = epoch_of(time_R[begin_S], self._model["first_year"], self._model["epochs"])
        epoch_R = epoch_S[np.cumsum(opens_R) - 1]
        stray, trend = self._model["stray"], self._model["trend"]
        chance_RK, gone_RK = self._taste.chances(film_R, epoch_R)
        trend_R, trend_gone_R = self._trend.chances_of_epoch(film_R, epoch_R)
        num_films = len(self._movie_M)
        stray_gone_R = np.arange(len(film_R)) / num_films + self._not_out_E[epoch_R]
        chance_RK = (1.0 - stray - trend) * chance_RK + (stray / num_films + trend * trend_R)[:, None]
        gone_RK = (1.0 - stray - trend) * gone_RK + (stray * stray_gone_R + trend * trend_gone_R)[:, None]
        entity_RN, entity_gone_RN = self._entity.chances(film_R, epoch_R)
        share_N = self.entities["share"].to_numpy()
        log_HSK = np.empty((len(share_N) + 1, len(begin_S), chance_RK.shape[1]))
        for entity, share in enumerate(share_N):
            found_RK = (1.0 - share) * chance_RK + share * entity_RN[:, entity, None]
            left_RK = 1.0 - (1.0 - share) * gone_RK - share * entity_gone_RN[:, entity, None]
            log_HSK[entity] = np.add.reduceat(np.log(found_RK / left_RK), begin_S)
        log_HSK[-1] = np.add.reduceat(np.log(chance_RK / (1.0 - gone_RK)), begin_S)
        return self._forward(log_HSK)

    def _forward(self, log_HSK: FloatArray) -> FloatArray:
        """Sum over all walks of the taste, from a uniform start. Shape (H,)."""
        total_H = np.zeros(len(log_HSK))
        belief_HK = np.full((len(log_HSK), log_HSK.shape[2]), 1.0 / log_HSK.shape[2])
        for session in range(log_HSK.shape[1]):
            if session:
                belief_HK = belief_HK @ self._step_KK
            log_HK = log_HSK[:, session]
            best_H = log_HK.max(axis=1)
            belief_HK = belief_HK * np.exp(log_HK - best_H[:, None])
            sum_H = belief_HK.sum(axis=1)
            total_H += best_H + np.log(sum_H)
            belief_HK = belief_HK / sum_H[:, None]
        return total_H

    def _log_liked(self, film_R: IntArray, liked_R: BoolArray) -> FloatArray:
        """Log-likelihood of the likes among the watched films under each preference. Shape (H,)."""
        odds_QR = self._quality_M[film_R] + np.array(self._model["generosities"])[:, None]
        sign_R = np.where(liked_R, 1.0, -1.0)
        plain_QR = -np.logaddexp(0.0, -sign_R * odds_QR)
        preferred_QR = -np.logaddexp(0.0, -sign_R * (odds_QR + self._model["strength"]))
        gain_NQ = self._carries_NM[:, film_R].astype(float) @ (preferred_QR - plain_QR).T
        log_HQ = plain_QR.sum(axis=1) + np.vstack([gain_NQ, np.zeros(len(odds_QR))])
        log_H: FloatArray = np.logaddexp.reduce(log_HQ, axis=1) - np.log(len(odds_QR))
        return log_H


# L channels of one sort: tastes, epochs or entities
@dataclass(frozen=True, slots=True)
class _Channel:
    """``share_ML`` is the chance of each film in each channel, ``not_out_EL`` that of all films not out in an epoch."""

    share_ML: npt.NDArray[np.float32]
    not_out_EL: FloatArray

    @classmethod
    def build(
        cls, counts: pl.DataFrame, sort: str, number: int, released_M: IntArray, model: dict[str, Any]
    ) -> _Channel:
        rows = counts.filter(pl.col("channel") == sort)
        share_ML = np.zeros((len(released_M), number), dtype=np.float32)
        share_ML[rows["film"].to_numpy(), rows["number"].to_numpy()] = rows["count"].to_numpy() / model["slots"]
        coming_EL = np.zeros((model["epochs"] + 1, number))
        np.add.at(coming_EL, np.minimum(released_M, model["epochs"]), share_ML)
        # a film that comes out in an epoch is not out in earlier ones
        return cls(share_ML, coming_EL[::-1].cumsum(axis=0)[::-1][1:])

    def chances(self, film_R: IntArray, epoch_R: IntArray) -> tuple[FloatArray, FloatArray]:
        """Of each film in each channel, and of all films that are watched before or not out. Shapes (R, L)."""
        share_RL = self.share_ML[film_R].astype(np.float64)
        return share_RL, share_RL.cumsum(axis=0) - share_RL + self.not_out_EL[epoch_R]

    def chances_of_epoch(self, film_R: IntArray, epoch_R: IntArray) -> tuple[FloatArray, FloatArray]:
        """As ``chances``, each row in the channel of its own epoch. Shapes (R,)."""
        epochs, place_R = np.unique(epoch_R, return_inverse=True)
        share_RL = self.share_ML[film_R][:, epochs].astype(np.float64)
        before_RL = share_RL.cumsum(axis=0) - share_RL
        row_R = np.arange(len(film_R))
        return share_RL[row_R, place_R], before_RL[row_R, place_R] + self.not_out_EL[epoch_R, epoch_R]


def _ring(places: int, step: float) -> FloatArray:
    """Transition matrix between the positions of a circle, square."""
    stay = np.eye(places)
    moved: FloatArray = (1.0 - 2.0 * step) * stay + step * (np.roll(stay, 1, axis=1) + np.roll(stay, -1, axis=1))
    return moved
