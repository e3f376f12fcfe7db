"""Probabilities of the candidates under two prompts, and how far they are apart."""
# Shape letters in this file: C candidates of a prompt, S those of both prompts

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.stats import kendalltau

from tripletune.contract import Residual
from tripletune.rank.served import add_retriever
from tripletune.schemas.rank import SERVED

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scored:
    """The candidates of one prompt as a system orders them."""

    films_C: tuple[int, ...]
    """In the order shown."""
    log_C: Floats
    """Log-probability of each, in nats, summing to one as probabilities."""
    first: int
    """The first answer."""

    def right(self, answers: Sequence[int]) -> float:
        """Mean log-probability of the answers that are candidates; NaN where none is."""
        found = [self.log_C[self.films_C.index(film)] for film in answers if film in self.films_C]
        return float(np.mean(found)) if found else float("nan")


def score_prompts(prompts: pl.DataFrame, answered: pl.DataFrame, residual: Residual | None) -> dict[str, list[Scored]]:
    """The candidates of each prompt by system: ``tuned`` and, where there is a residual, ``SERVED``.

    Args:
        prompts: ``candidates`` and ``retrieved``.
        answered: ``answers``, all candidates, and ``scores``, their logits, as ``Answerer.score`` gives them; in the
            order of the prompts.
        residual: of the adapter's contract.
    """
    systems = {"tuned": answered.select("answers", "scores")}
    if residual:
        systems[SERVED] = add_retriever(systems["tuned"], prompts["retrieved"], residual)
    shown = prompts["candidates"].to_list()
    return {
        system: [_scored(films, *ranked) for films, ranked in zip(shown, rows.rows(), strict=True)]
        for system, rows in systems.items()
    }


def _scored(shown: Sequence[int], ranked: Sequence[int], scores: Sequence[float]) -> Scored:
    by_film = dict(zip(ranked, scores, strict=True))
    score_C = np.array([by_film[film] for film in shown], dtype=np.float64)
    return Scored(tuple(shown), score_C - np.logaddexp.reduce(score_C), ranked[0])


def change(whole: Scored, other: Scored, answers: Sequence[int]) -> float:
    """What the right answer's log-probability gains by what the whole prompt has and the other lacks, in nats."""
    return whole.right(answers) - other.right(answers)


def distance(whole: Scored, other: Scored) -> float:
    """Total variation between the two distributions over the same candidates, 0 to 1."""
    by_film = dict(zip(other.films_C, other.log_C, strict=True))
    other_C = np.array([by_film[film] for film in whole.films_C])
    return float(np.abs(np.exp(whole.log_C) - np.exp(other_C)).sum() / 2)


def tau(whole: Scored, other: Scored) -> float:
    """Kendall's tau-b between the orders of the same films."""
    by_film = dict(zip(other.films_C, other.log_C, strict=True))
    return _tau(whole.log_C, np.array([by_film[film] for film in whole.films_C]))


def tau_by_place(whole: Scored, other: Scored) -> float | None:
    """Kendall's tau-b between the scores of the same places; None where the films are shown in the same order."""
    return None if whole.films_C == other.films_C else _tau(whole.log_C, other.log_C)


def tau_of_lists(before: Sequence[int], after: Sequence[int]) -> tuple[float | None, float]:
    """Kendall's tau-b between the orders of the films that both lists have, and the share of the first's in both."""
    shared_S = [film for film in before if film in after]
    places_S = [after.index(film) for film in shared_S]
    share = len(shared_S) / len(before) if before else 1.0
    return (
        _tau(np.arange(float(len(shared_S))), np.array(places_S, dtype=np.float64)) if len(shared_S) > 1 else None
    ), share


def _tau(first: Floats, second: Floats) -> float:
    """1 between orders without any difference, also where all values are the same."""
    if np.array_equal(first, second):
        return 1.0
    value = float(kendalltau(first, second).statistic)
    return 0.0 if np.isnan(value) else value
