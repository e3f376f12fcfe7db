"""What a fit may see: never the answers of the queries that it writes hints for."""

from __future__ import annotations

from tripletune.schemas.query import ANSWER_LABEL, FIT_LABELS, FIT_OF, PURPOSES
from tripletune.schemas.split import LIKE_LABELS


def test_no_fit_is_trained_on_answers_of_its_queries_or_on_later_likes() -> None:
    assert FIT_OF.keys() == ANSWER_LABEL.keys() == set(PURPOSES.categories)
    for purpose, fit in FIT_OF.items():
        oldest_answer = LIKE_LABELS.index(ANSWER_LABEL[purpose])
        assert all(LIKE_LABELS.index(label) < oldest_answer for label in FIT_LABELS[fit]), (purpose, fit)
