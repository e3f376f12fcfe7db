"""Audit of answers that were written without constraint: which are no answers, and does the model invent films?

A title that no film has is another matter than a film that was not on offer, and both than an answer in the wrong form.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from tripletune.config import EvaluateConfig
from tripletune.evaluate.answers.record import Audited, Line, Verdict, plain
from tripletune.evaluate.answers.titles import TitleIndex, title_key
from tripletune.evaluate.significance import Interval, share_interval
from tripletune.schemas.answers import AnswerStyle

NAME = "written"
VALID = "valid"
INVENTED = "invented title"
NOT_SHOWN = "film that is no candidate"
OUTSIDE = "label of no candidate"
FORM = "candidates in the wrong form"
UNREADABLE = "nothing readable"
KINDS = (VALID, INVENTED, NOT_SHOWN, OUTSIDE, FORM, UNREADABLE)
"""Kinds of answers; one that is not valid has the first of the others that one of its lines has."""
MAX_QUOTED = 5
"""Invented titles that are kept as examples for each system."""
_MARK = re.compile(r"^\s*(?:\d+\s*[.)]|[A-Z]{1,2}\s*[.)]|[-*•])\s*")
"""What a line may have before a title: its number, a label, a bullet."""
_NUMBER = re.compile(r"^\s*\d+\s*[.)]")
_LABEL = re.compile(r"^[A-Z]{1,2}[.):]?$")


class Offer(NamedTuple):
    """What a prompt offers: names by which an answer may name candidates, and their titles."""

    style: AnswerStyle
    labels: Collection[str]
    titles: TitleIndex


def kind_of_line(line: str, offer: Offer, catalogue: TitleIndex) -> str:
    """One of ``KINDS`` but valid, of a line of an answer that is not valid.

    A line that names a candidate, in the requested form or another one, is ``FORM``. A title is recognised by its year
    in brackets, or, where answers are titles, by the number before it.
    """
    text = line.strip()
    if offer.style.is_labelled and _LABEL.match(text):
        return FORM if text.strip(".):") in offer.labels else OUTSIDE
    key = title_key(_MARK.sub("", text))
    if not any(char.isalnum() for char in key.words):
        return UNREADABLE
    if key in offer.titles:
        return FORM
    if key in catalogue:
        return NOT_SHOWN
    is_title = bool(key.year) or (not offer.style.is_labelled and _NUMBER.match(text) is not None)
    return INVENTED if is_title else UNREADABLE


def kind_of_answer(text: str, offer: Offer, catalogue: TitleIndex) -> tuple[str, list[str]]:
    """The kind of an answer that is not valid, and its lines with invented titles."""
    lines = [line for line in text.split("\n") if line.strip()]
    kinds = [kind_of_line(line, offer, catalogue) for line in lines]
    invented = [line.strip() for line, kind in zip(lines, kinds, strict=True) if kind == INVENTED]
    return min(kinds, key=KINDS.index, default=UNREADABLE), invented


def audit_written(
    answers: pl.DataFrame, style: AnswerStyle, movies: pl.Series, systems: Sequence[str], settings: EvaluateConfig
) -> tuple[Audited, dict[str, list[str]]]:
    """Kinds of the answers that were written without constraint, of each user's first query.

    Args:
        answers: ``user_id, cutoff, system, text, valid, candidate_titles, candidate_letters``.
        style: of the answers.
        movies: titles of all films of the release.
        systems: in the order of the tables.
        settings: confidence of the exact intervals of shares (Clopper & Pearson 1934).

    Returns:
        Lines ``answers`` with a share for each of ``KINDS``, a verdict for each system that wrote, and by system
        invented titles as they were written, ``MAX_QUOTED`` at most.
    """
    audited, quoted, catalogue = Audited(), dict[str, list[str]](), TitleIndex(movies)
    first = answers.filter(pl.col("cutoff") == pl.col("cutoff").min().over("user_id")).sort("user_id")
    for system in systems:
        kinds, invented = [], list[str]()
        for row in first.filter(pl.col("system") == system).iter_rows(named=True):
            kind = VALID
            if not row["valid"]:
                offer = Offer(style, row["candidate_letters"], TitleIndex(row["candidate_titles"]))
                kind, titles = kind_of_answer(row["text"], offer, catalogue)
                invented += titles
            kinds.append(kind)
        if kinds:
            audited.add(_count(system, kinds, settings))
            quoted[system] = list(dict.fromkeys(invented))[:MAX_QUOTED]
    return audited, quoted


def _count(system: str, kinds: Sequence[str], settings: EvaluateConfig) -> Audited:
    audited, said = Audited(), dict[str, str]()
    for kind in KINDS:
        share = share_interval(np.array([float(one == kind) for one in kinds]), confidence=settings.confidence)
        audited.lines.append(
            Line(NAME, system, "answers", kind, share.value, share.low, share.high, num_users=len(kinds))
        )
        said[kind] = f"{kinds.count(kind)} of {len(kinds)} answers{_between(share)}"
    if INVENTED in kinds:
        audited.verdicts.append(Verdict(NAME, system, "found", f"invents titles in {said[INVENTED]}"))
    else:
        words = f"no invented title in {len(kinds)} answers; valid: {said[VALID]}"
        others = [f"{kinds.count(kind)} {kind}" for kind in KINDS[2:] if kind in kinds]
        audited.verdicts.append(Verdict(NAME, system, "none", "; ".join([words, *others])))
    return audited


def _between(share: Interval) -> str:
    """The interval in brackets, in per cent; nothing for a single answer, which has none."""
    if share.low is None or share.high is None:
        return ""
    return f" ({plain(100 * share.low, 1)} to {plain(100 * share.high, 1)} %)"
