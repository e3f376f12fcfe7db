"""Order of the candidates from all forms of a query's prompt, as in RecRanker: a weighted sum of utilities.

Each form gives each candidate a utility between 0 and 1:

    listwise   place in the list's answer: 1, 4/5, 3/5, 2/5, 1/5 for the first five, then 0
    pointwise  probability of Yes against No
    pairwise   share of its two comparisons that it wins, one as the film shown first and one as the second

RecRanker (Luo et al., https://arxiv.org/abs/2312.16018) adds the predicted rating in stars, half a star for a film that
wins both comparisons (a quarter if the order shown decides), and an eighth for the first of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from tripletune.contract import Ensemble
from tripletune.forms import LABELS, ListPrompt, Message, pairs_of
from tripletune.schemas.answers import NUM_ANSWERS
from tripletune.schemas.rank import UTILITIES

ScoreLabels = Callable[[Sequence[Sequence[Message]], Sequence[Sequence[str]]], list[list[float]]]
"""Prompts and the labels of each -> their logits, where an answer begins."""


def combine_forms(examples: pl.DataFrame, listed: pl.DataFrame, ensemble: Ensemble, score: ScoreLabels) -> pl.DataFrame:
    """Ask the short forms, and order the candidates by the sum of their utilities.

    Args:
        examples: ``prompt``, ``candidates``, ``candidate_letters`` of the lists.
        listed: their answers, best first.
        ensemble: of the adapter's contract.
        score: answers the short forms.

    Returns:
        ``listed`` with ``answers`` and ``scores`` of the sum (of equal sums the list's better one is first), and
        ``utilities``, those of each answer.

    Raises:
        ContractError: a prompt was not rendered with the ensemble's template.
    """
    letters = examples["candidate_letters"].to_list()
    cut = [
        ListPrompt.cut(prompt, labels, ensemble.texts, f"example {row}")
        for row, (prompt, labels) in enumerate(zip(examples["prompt"].to_list(), letters, strict=True))
    ]
    by_form = {form: _utilities(form, cut, score) for form in ensemble.forms}
    rows = []
    pairs = zip(examples["candidates"].to_list(), listed["answers"].to_list(), strict=True)
    for row, (shown, listed_films) in enumerate(pairs):
        order = list(dict.fromkeys([*listed_films, *shown]))  # an answer that was written names five
        found = {form: dict(zip(shown, values[row], strict=True)) for form, values in by_form.items()}
        found["listwise"] = {film: max(0.0, 1 - place / NUM_ANSWERS) for place, film in enumerate(order)}
        total = {film: sum(weight * found[form][film] for form, weight in ensemble.weights.items()) for film in order}
        best = sorted(order, key=total.__getitem__, reverse=True)  # stable: of equals the list's order
        rows.append(
            {
                "answers": best,
                "scores": [total[film] for film in best],
                "utilities": [{form: values[film] for form, values in found.items()} for film in best],
            }
        )
    schema = {"answers": listed.schema["answers"], "scores": pl.List(pl.Float32), "utilities": UTILITIES}
    return listed.with_columns(pl.DataFrame(rows, schema=schema))


def _utilities(form: str, cut: Sequence[ListPrompt], score: ScoreLabels) -> list[list[float]]:
    """A short form's utility of each candidate, in the order shown, of each list."""
    asked: list[list[Any]] = [
        pairs_of(len(one.films)) if form == "pairwise" else [(place,) for place in range(len(one.films))] for one in cut
    ]
    prompts = [getattr(one, form)(*places) for one, several in zip(cut, asked, strict=True) for places in several]
    logits = iter(score(prompts, [LABELS[form]] * len(prompts)))
    found = []
    for one, several in zip(cut, asked, strict=True):
        value_C = np.zeros(len(one.films))
        for places in several:
            first, second = next(logits)
            if form == "pointwise":
                value_C[places[0]] = 1 / (1 + np.exp(second - first))
            else:  # a tie goes to the film shown first, as the first of equal logits is the answer
                value_C[places[0 if first >= second else 1]] += 0.5
        found.append(value_C.tolist())
    return found
