"""Registry of hints. A further hint is a declaration in a module of its own, imported and listed here."""

from __future__ import annotations

from tripletune.schemas.hint import LIGHTGCN, RGAT, Hint, Specialist

HINTS = (
    Hint(
        name="ranking",
        number=1,
        specialist=LIGHTGCN,
        kind="films",
        meaning="the first of the candidates in LightGCN's order",
        numbered=True,
        origin="LightGCN rank {place}",
        settings=("hint_films",),
        shortened=False,
        masked=True,
        within=("candidates",),
    ),
    Hint(
        name="similar",
        number=1,
        specialist=LIGHTGCN,
        kind="films",
        meaning="films that similar users liked",
        origin="similar users liked it",
        settings=("similar_films", "similar_viewers", "similar_people"),
        shortened=True,
        masked=True,
        liked_in_fit="similar users' film",
    ),
    Hint(
        name="triples",
        number=2,
        specialist=RGAT,
        kind="triples",
        meaning="the facts shown, as chosen by the R-GAT",
        settings=("triple_choice", "triples_per_film"),
        shortened=True,
        masked=False,
        within=("candidates", "liked"),
    ),
    Hint(
        name="topics",
        number=3,
        specialist=RGAT,
        kind="topics",
        meaning="facts that many of the user's likes share, of those that the R-GAT was trained on",
        settings=("num_topics",),
        shortened=True,
        masked=False,
    ),
)
"""Every hint, in the order of the columns. The token budget drops their lines in this order too."""
HINT_OF = {hint.name: hint for hint in HINTS}
FILM_HINTS = tuple(hint for hint in HINTS if hint.kind == "films")
TOPIC_HINTS = tuple(hint for hint in HINTS if hint.kind == "topics")
RETRIEVED_HINTS = (*FILM_HINTS, *TOPIC_HINTS)
"""Hints that are columns of retrieve's rows."""
TRIPLE_HINTS = tuple(hint for hint in HINTS if hint.kind == "triples")
SPECIALISTS = tuple(dict.fromkeys(hint.specialist for hint in HINTS))
"""Every specialist that writes a hint, in the order of the columns."""


def written_by(specialist: Specialist) -> str:
    """Hints of a specialist in words: ``hint 1``, ``hints 1 and 3``."""
    numbers = [str(number) for number in sorted({hint.number for hint in HINTS if hint.specialist == specialist})]
    return f"hint{'s' if len(numbers) > 1 else ''} {' and '.join(numbers)}"
