"""Rows of the first-stage tables: the ranked retrievers, in the order of every table."""

from __future__ import annotations

from collections.abc import Iterable

from tripletune.config import BASELINES, RETRIEVERS
from tripletune.schemas.rank import ALWAYS, SYSTEMS
from tripletune.schemas.retrieve import RANKED_ALWAYS, RECENT

CEILING_ROW = "retrieval"
"""Row of the share of held-out films that are candidates; no retriever."""
_ORDER = (*BASELINES, *RETRIEVERS)


def retrieval_rows(names: Iterable[str]) -> tuple[str, ...]:
    """The rows of a first-stage table, in order: those of every run and ``popularity-7d``, then the baselines', then
    the other retrievers' in the order of ``config.RETRIEVERS``, then ``fused``.

    Args:
        names: lists that were ranked, or all rows of ``metrics.parquet``; those of re-ranking are dropped. A list of a
            retriever that is no longer registered is kept, after the others.
    """
    found = set(names)
    further = found - {*RANKED_ALWAYS, *SYSTEMS, CEILING_ROW, RECENT, "fused"}
    popularity, *others = RANKED_ALWAYS
    return (popularity, *(found & {RECENT}), *others, *sorted(further, key=_place), *(found & {"fused"}))


def ranked_systems(names: Iterable[str]) -> tuple[str, ...]:
    """The rows of a re-ranking table, in order: the systems of every run, and the others that ranked."""
    found = set(names)
    return tuple(system for system in SYSTEMS if system in found or system in ALWAYS)


def _place(name: str) -> tuple[int, str, bool, str]:
    retriever = name.split("-")[0]
    place = _ORDER.index(retriever) if retriever in _ORDER else len(_ORDER)
    return place, retriever, name == retriever, name
