"""Table of who is asked: how many users have a valid and a test query, and why the others have none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from tripletune.schemas.query import QUERY_KEY
from tripletune.store.parquet import scan
from tripletune.store.paths import read_manifest

PURPOSES = ("valid", "test")
GROUPS = ("warm", "unseen")


class Asked(NamedTuple):
    """Protocol of the split, and lines of a label and a number of users for each of ``PURPOSES``; where users have
    several queries, the last lines count queries and say so."""

    protocol: str
    lines: list[tuple[str, tuple[int, ...]]]


def asked_users(split: Path, retrieve: Path) -> Asked | None:
    """Count the users step by step, from the release to the first-stage lists.

    Args:
        split, retrieve: folders of the stages; the counts of both are in their manifests.

    Returns:
        None for a split without facts, as in a work folder.
    """
    facts = _facts(split)
    queries: Mapping[str, Mapping[str, int]] | None = facts.get("queries")
    if not queries:
        return None
    lines = [_same("users of the release", facts["viewers_in"])]
    if facts["viewers_in"] > facts["viewers"]:
        lines.append(_same("dropped: too few ratings, split.min_interactions", facts["viewers_in"] - facts["viewers"]))
    reasons = dict.fromkeys(kind for purpose in PURPOSES for kind in queries[purpose] if kind not in GROUPS)
    lines += [(f"dropped: {reason}", _of(queries, reason)) for reason in reasons]
    lines += [(f"{group} users with a query", _of(queries, group)) for group in GROUPS]
    known = _facts(retrieve).get("left_out_known_to_fit", {})
    if any(known.get(purpose) for purpose in PURPOSES):
        lines.append(("dropped: the fit was trained on the answer", tuple(known.get(name, 0) for name in PURPOSES)))
    ranked = scan(retrieve / "rankings.parquet").select(*QUERY_KEY, "unseen").unique().collect()
    counts = ranked.group_by("purpose", "unseen").agg(users=pl.col("user_id").n_unique(), queries=pl.len())
    found = {(row["purpose"], row["unseen"]): row for row in counts.iter_rows(named=True)}
    has_several = (counts["queries"] > counts["users"]).any()
    for kind in ("users", "queries") if has_several else ("users",):
        for group in GROUPS:
            of_group = (found.get((name, group == "unseen"), {kind: 0}) for name in PURPOSES)
            lines.append((f"{group} {kind} ranked", tuple(row[kind] for row in of_group)))
    return Asked(facts["protocol"], lines)


def _facts(folder: Path) -> Mapping[str, Any]:
    manifest = read_manifest(folder) or {}
    found: Mapping[str, Any] = manifest.get("facts", {})
    return found


def _same(label: str, count: int) -> tuple[str, tuple[int, ...]]:
    return label, (count,) * len(PURPOSES)


def _of(queries: Mapping[str, Mapping[str, int]], kind: str) -> tuple[int, ...]:
    return tuple(queries[purpose].get(kind, 0) for purpose in PURPOSES)
