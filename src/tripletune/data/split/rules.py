"""Label each rating by protocol: used in training, an answer of valid or test, or neither.

A user's likes, oldest first, form runs of labels: a number of ``graph``, then a number of ``target``, and so on. A rule
computes the length of each run for each user. Ratings that are no likes are ``other`` under every protocol.
"""

# Shape letters in this file: V users, R ratings, L likes
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tripletune.config import SplitConfig
from tripletune.data.split.frozen import Held
from tripletune.data.split.history import Ratings
from tripletune.schemas.ingest import midnight
from tripletune.schemas.split import SPLIT_LABELS
from tripletune.stable_hash import pair_hash

Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint8]
"""Numbers of the categories of ``SPLIT_LABELS``."""

NUMBER = {name: np.uint8(number) for number, name in enumerate(SPLIT_LABELS.categories)}
DRAW = 1 << 32
"""Seed offset, so that the likes drawn by ``ratio`` do not depend on how ties in time are ordered."""


@dataclass(frozen=True, slots=True)
class _Likes:
    """Likes sorted by user and, within a user, oldest first; ``user_L`` numbers the users from 0."""

    history: Ratings
    row_L: Ints
    user_L: Ints

    @property
    def count_V(self) -> Ints:
        return self.count(np.ones(len(self.row_L), np.bool_))

    def count(self, which_L: npt.NDArray[np.bool_]) -> Ints:
        """Number of these likes per user, shape (V,)."""
        return np.bincount(self.user_L[which_L], minlength=self.history.num_viewers)


def label_ratings(history: Ratings, settings: SplitConfig, seed: int, held: Held | None = None) -> Labels:
    """Label each rating, shape (R,).

    Args:
        history: each user's ratings, oldest first.
        settings: the protocol, thresholds, and number of likes per label.
        seed: draws the likes that ``ratio_order = "random"`` holds out.
        held: users of frozen queries, whose answers stay the same.
    """
    row_L = np.flatnonzero(history.rating_R >= np.float32(settings.like))
    likes = _Likes(history, row_L, history.per_row(np.arange(history.num_viewers))[row_L])
    label_R = np.full(history.num_ratings, NUMBER["other"])
    if settings.protocol == "leave_one_out":
        label_R[row_L] = _leave_one_out(likes, settings)
    elif settings.protocol == "global_time":
        label_R[row_L] = _global_time(likes, settings)
    else:
        label_R[row_L] = _ratio(likes, settings, seed)
    if held is not None:
        _keep_answers(label_R, likes, held, settings)
    return label_R


def _keep_answers(label_R: Labels, likes: _Likes, held: Held, settings: SplitConfig) -> None:
    """Label the likes of held users: before the first answer for training, the others except answers ``later``."""
    answer_V = np.full(likes.history.num_viewers, likes.history.num_ratings)
    np.minimum.at(answer_V, held.user_Q, held.row_Q)
    learned_V = likes.count(likes.row_L < answer_V[likes.user_L])
    label_L = _runs(*_learned(learned_V, settings), ("later", likes.count_V - learned_V))
    is_held_L = held.is_held_V[likes.user_L]
    label_R[likes.row_L[is_held_L]] = label_L[is_held_L]
    label_R[held.row_Q] = np.where(held.is_test_Q, NUMBER["test"], NUMBER["valid"])


def _leave_one_out(likes: _Likes, settings: SplitConfig) -> Labels:
    """The newest ``held_out`` likes are ``test``, as many before them ``valid``; a user with too few likes keeps all in
    ``graph``."""
    asked_V = likes.count_V >= settings.min_graph + 2 * settings.held_out
    held_out_V = settings.held_out * asked_V
    learned_V = likes.count_V - 2 * held_out_V
    return _runs(*_learned(learned_V, settings, asked_V), ("valid", held_out_V), ("test", held_out_V))


def _global_time(likes: _Likes, settings: SplitConfig) -> Labels:
    """Likes before ``valid_from`` are for training. Of a user with enough of them, the first ``held_out`` likes on or
    after ``test_from`` are ``test`` and the first ``held_out`` between the two days ``valid``. All others since
    ``valid_from`` are ``later``: evidence where they precede a cutoff, and nothing else."""
    assert settings.valid_from, "SplitConfig requires both days for this protocol"
    assert settings.test_from
    time_L = likes.history.time_R[likes.row_L]
    before_L, late_L = time_L < midnight(settings.valid_from), time_L >= midnight(settings.test_from)
    before_V, between_V, late_V = likes.count(before_L), likes.count(~before_L & ~late_L), likes.count(late_L)
    asked_V = before_V >= settings.min_graph
    valid_V, test_V = (asked_V * np.minimum(count_V, settings.held_out) for count_V in (between_V, late_V))
    return _runs(
        *_learned(before_V, settings),
        ("valid", valid_V),
        ("later", between_V - valid_V),
        ("test", test_V),
        ("later", late_V - test_V),
    )


def _ratio(likes: _Likes, settings: SplitConfig, seed: int) -> Labels:
    """Shares of each user's likes, rounded down but at least one, are ``valid`` and ``test``: drawn, or the newest.
    A user who would keep fewer than ``min_graph`` training likes keeps all in ``graph``."""
    shares = (settings.valid_share, settings.test_share)
    # .29 * 100 lies just below 29
    valid_V, test_V = (np.maximum(1, np.floor(likes.count_V * share + 1e-9)).astype(np.int64) for share in shares)
    asked_V = likes.count_V - valid_V - test_V >= settings.min_graph
    valid_V, test_V = valid_V * asked_V, test_V * asked_V
    learned_V = likes.count_V - valid_V - test_V
    learned = _learned(learned_V, settings, asked_V)
    if settings.ratio_order == "chronological":
        return _runs(*learned, ("valid", valid_V), ("test", test_V))
    users_L = likes.history.user_ids_V[likes.user_L]
    drawn_L = np.lexsort((pair_hash(users_L, likes.history.movie_R[likes.row_L], seed + DRAW), likes.user_L))
    label_L = np.empty(len(likes.row_L), np.uint8)
    label_L[drawn_L] = _runs(("graph", learned_V), ("valid", valid_V), ("test", test_V))
    label_L[label_L == NUMBER["graph"]] = _runs(*learned)
    return label_L


def _learned(
    learned_V: Ints, settings: SplitConfig, asked_V: npt.NDArray[np.bool_] | bool = True
) -> tuple[tuple[str, Ints], tuple[str, Ints]]:
    """Run lengths of the training likes: at most the newest ``max_target`` are ``target``, at least ``min_graph`` stay
    ``graph``; without a valid or test query all stay ``graph``."""
    target_V = np.where(asked_V, np.clip(learned_V - settings.min_graph, 0, settings.max_target), 0)
    return ("graph", learned_V - target_V), ("target", target_V)


def _runs(*runs: tuple[str, npt.NDArray[np.generic]]) -> Labels:
    """Labels of all users, one user after another, from the run lengths per user; shape (L,)."""
    length_VC = np.column_stack([length_V for _, length_V in runs])
    number_C = np.array([NUMBER[name] for name, _ in runs])
    return np.repeat(np.tile(number_C, len(length_VC)), length_VC.ravel())
