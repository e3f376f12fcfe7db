"""Hint 3: the candidates that most users liked. ``retrieve/popular.py`` computes it."""

from __future__ import annotations

from tripletune.schemas.hint import LIGHTGCN, Hint

POPULAR = Hint(
    name="popular",
    number=3,
    specialist=LIGHTGCN,
    kind="films",
    meaning="the candidates that most users liked, in the rows of LightGCN's fit",
    numbered=True,
    origin="number {place} by likes",
    computed_by="popular",
    shortened=True,
    masked=True,
    within=("candidates",),
    liked_in_fit="popular film",
)
