"""Evidence stops at the cutoff."""

from __future__ import annotations

import polars as pl

from tripletune.prompts.evidence import collect_answers, collect_evidence
from tripletune.schemas.query import PURPOSES
from tripletune.schemas.split import SPLIT

ROWS = pl.DataFrame(
    [
        (1, 10, 5.0, 0, 0, "graph", False),
        (1, 11, 2.5, 0, 1, "other", False),
        (1, 12, 3.5, 0, 2, "other", False),
        (1, 13, 4.0, 0, 3, "graph", False),
        (1, 14, 1.0, 0, 4, "other", False),
        (1, 15, 4.5, 0, 5, "target", False),
        (1, 16, 2.0, 0, 6, "other", False),
        (1, 17, 5.0, 0, 7, "target", False),
        (1, 18, 4.0, 0, 8, "valid", False),
        (1, 19, 4.0, 0, 9, "test", False),
        (2, 10, 4.0, 0, 0, "graph", True),
    ],
    schema=SPLIT,
    orient="row",
)
QUESTIONS = pl.DataFrame(
    {"user_id": [1, 1, 1, 2], "purpose": ["train", "valid", "test", "test"], "cutoff": [5, 8, 9, 1]},
    schema={"user_id": pl.Int32, "purpose": PURPOSES, "cutoff": pl.Int32},
)


def evidence(**limits):
    return collect_evidence(ROWS, QUESTIONS, **({"dislike": 3.0, "max_liked": 15, "max_disliked": 5} | limits))


def test_evidence_is_newest_first_and_ends_before_the_cutoff():
    assert evidence()["liked"].to_list() == [[13, 10], [17, 15, 13, 10], [18, 17, 15, 13, 10], [10]]
    assert evidence()["disliked"].to_list() == [[14, 11], [16, 14, 11], [16, 14, 11], []]


def test_limits_keep_the_newest():
    short = evidence(max_liked=2, max_disliked=1)
    assert short["liked"].to_list() == [[13, 10], [17, 15], [18, 17], [10]]
    assert short["disliked"].to_list() == [[14], [16], [16], []]
    assert evidence(max_disliked=0)["disliked"].to_list() == [[], [], [], []]


def test_the_dislike_threshold_is_the_splits():
    assert evidence(dislike=2.0)["disliked"].to_list()[0] == [14]


def test_answers_are_the_likes_of_the_purpose():
    answers = collect_answers(ROWS, QUESTIONS)
    assert answers.rows() == [
        (1, "train", 5, 15, 4.5),
        (1, "train", 5, 17, 5.0),
        (1, "valid", 8, 18, 4.0),
        (1, "test", 9, 19, 4.0),
    ]
