"""Count the users with a valid and a test query, and the others by the reason why they have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.config import SplitConfig
from tripletune.schemas.ingest import midnight
from tripletune.schemas.split import LIKE_LABELS

PURPOSES = ("valid", "test")
GROUPS = ("warm", "unseen")
NOT_FROZEN = "not in the frozen set"

Counts = Counter[tuple[str, str]]
"""Users by purpose, and ``warm``, ``unseen`` or the reason why they have no query."""


def count_queries(shard: pl.DataFrame, settings: SplitConfig, asked: npt.NDArray[np.int64] | None) -> Counts:
    """Count each user of a shard once for each purpose.

    Args:
        shard: SPLIT.
        settings: the protocol and its thresholds.
        asked: ids of the users of a frozen set that are kept; None without one.
    """
    is_early = pl.col("timestamp") < midnight(settings.valid_from) if settings.valid_from else pl.lit(value=True)
    likes = shard.lazy().filter(pl.col("label").is_in(LIKE_LABELS)).group_by("user_id")
    found = likes.agg(early=is_early.sum(), **{name: (pl.col("label") == name).any() for name in PURPOSES})
    users = shard.lazy().filter(pl.col("position") == 0).select("user_id", "unseen")
    users = users.join(found, on="user_id", how="left").with_columns(
        pl.col("early").fill_null(0), *(pl.col(name).fill_null(value=False) for name in PURPOSES)
    )
    if asked is not None:
        is_held = pl.col("user_id").is_in(pl.Series(asked, dtype=pl.Int32).implode())
        users = users.with_columns(pl.col(name) & is_held for name in PURPOSES)
    group = pl.when("unseen").then(pl.lit("unseen")).otherwise(pl.lit("warm"))
    has_few = pl.col("early") < _least_likes(settings)
    counts: Counts = Counter()
    for name in PURPOSES:
        few, none = _reasons(settings, name) if asked is None else (NOT_FROZEN, NOT_FROZEN)
        reason = pl.when(has_few).then(pl.lit(few)).otherwise(pl.lit(none))
        kinds = users.select(kind=pl.when(name).then(group).otherwise(reason)).collect()["kind"]
        counts.update({(name, kind): count for kind, count in kinds.value_counts().iter_rows()})
    return counts


def query_facts(counts: Counts) -> Mapping[str, Mapping[str, int]]:
    """Facts by purpose: ``warm`` and ``unseen`` users with a query, then the reasons, the most frequent first."""
    found = {}
    for purpose in PURPOSES:
        mine = {kind: count for (name, kind), count in counts.items() if name == purpose}
        reasons = sorted(set(mine) - set(GROUPS), key=lambda kind: (-mine[kind], kind))
        found[purpose] = {kind: mine.get(kind, 0) for kind in (*GROUPS, *reasons)}
    return found


def _least_likes(settings: SplitConfig) -> int:
    return settings.min_graph + (2 * settings.held_out if settings.protocol == "leave_one_out" else 0)


def _reasons(settings: SplitConfig, purpose: str) -> tuple[str, str]:
    """Why a user has no query: with fewer likes than ``_least_likes``, and with enough."""
    few = f"fewer than {_least_likes(settings)} likes"
    if settings.protocol != "global_time":
        return few, "too few likes for the held-out shares"  # of ``ratio``; leave_one_out has no such users
    period = f"from {settings.valid_from} to before" if purpose == "valid" else "on or after"
    return f"{few} before {settings.valid_from}", f"no like {period} {settings.test_from}"
