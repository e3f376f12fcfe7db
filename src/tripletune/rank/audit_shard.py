"""The audit's rules on shards, each by itself: what is proven already is passed over, what is not is proven."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tripletune.rank.audit_leaks import Leak, to_leaks
from tripletune.rank.audit_lines import named_films
from tripletune.rank.audit_record import take_notes, unproven
from tripletune.rank.audit_rules import FIT_OF, column_findings
from tripletune.rank.audit_split import SplitRows
from tripletune.rank.audit_text import text_findings
from tripletune.rank.shards import read_rows
from tripletune.schemas import EXAMPLES, PROVEN

ENOUGH = 2048
"""Examples at a time for the rules on columns; of the few that a night adds to a shard, those of several shards."""


@dataclass(frozen=True, slots=True)
class Found:
    """What some shards hold, shard by shard."""

    leaks: list[Leak] = field(default_factory=list)
    seen: list[pl.DataFrame] = field(default_factory=list)
    """For the rules across shards: ``example_id, user_id, unseen, answers, fit``; ``fit`` writes the hints."""
    notes: list[pl.DataFrame] = field(default_factory=list)
    """``schemas.PROVEN`` where notes are taken."""
    anew: list[int] = field(default_factory=list)
    """How many examples needed a proof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardAudit:
    """What the rules ask beside the shards."""

    shards: Path
    """Generate's folder."""
    rows: SplitRows
    films: Mapping[str, pl.DataFrame]
    """``audit_rules.liked_films``."""
    limit: int | None
    """Leaks of one kind at a time; None: all."""
    viewers: pl.DataFrame | None
    """``SplitRows.digests``; None: no notes are taken, and everything is proven."""
    record: Mapping[str, pl.DataFrame]
    """``schemas.PROVEN`` by file: what is proven already."""

    def prove(self, purpose: str, paths: Sequence[Path]) -> Found:
        """The rules that look at one example at a time.

        Args:
            purpose: the folder that the shards lie in.
            paths: the shards.

        Raises:
            InputError: one has other columns than ``schemas.EXAMPLES``.
        """
        found = Found()
        waiting: list[tuple[pl.DataFrame, pl.DataFrame]] = []
        for path in paths:
            examples = read_rows(path, EXAMPLES)
            if examples.height:
                titles = named_films(examples)
                fit = pl.lit(FIT_OF[purpose])
                found.seen.append(examples.select("example_id", "user_id", "unseen", "answers", fit=fit))
                waiting.append((self._left(path, examples, titles, found), titles))
            if path == paths[-1] or sum(left.height for left, _ in waiting) >= ENOUGH:
                found.leaks.extend(self._prove(purpose, waiting))
                waiting = []
        return found

    def _left(self, path: Path, examples: pl.DataFrame, titles: pl.DataFrame, found: Found) -> pl.DataFrame:
        """The examples that need a proof; takes notes of all."""
        left = examples
        if self.viewers is not None:
            file = path.relative_to(self.shards).as_posix()
            notes = take_notes(file, examples, self.viewers, titles)
            left = unproven(examples, notes, self.record.get(file, PROVEN.to_frame()), titles)
            found.notes.append(notes)
        found.anew.append(left.height)
        return left

    def _prove(self, purpose: str, waiting: Sequence[tuple[pl.DataFrame, pl.DataFrame]]) -> list[Leak]:
        """Args: ``waiting`` are examples and titles by shard."""
        some = [(left, titles) for left, titles in waiting if left.height]
        if not some:
            return []
        together = pl.concat([left for left, _ in some])
        known = self.rows.of(together["user_id"])
        leaks = to_leaks(column_findings(together, known, self.films, purpose), limit=self.limit)
        for left, titles in some:  # a shard's titles are its own
            leaks += to_leaks(text_findings(left, titles, purpose), limit=self.limit)
        return leaks
