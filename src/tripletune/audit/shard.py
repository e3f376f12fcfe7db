"""Apply the audit's rules to groups of shards, skipping examples that an earlier run's record covers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from tripletune.audit.leaks import Leak, to_leaks
from tripletune.audit.lines import named_films
from tripletune.audit.record import take_notes, unproven
from tripletune.audit.rules import column_findings
from tripletune.audit.split_rows import SplitRows
from tripletune.audit.text import text_findings
from tripletune.audit.worked import Worked, stated_findings, worked_findings
from tripletune.schemas.answers import AnswerStyle
from tripletune.schemas.generate import EXAMPLES, PROVEN
from tripletune.schemas.inline import Inline
from tripletune.schemas.query import FIT_OF
from tripletune.store.parquet import read_rows

AT_A_TIME = 4096
"""Examples checked in one batch; the lines of their prompts take some 100 MB."""


class Found(NamedTuple):
    """Result of the audit of a group of shards."""

    leaks: list[Leak]
    seen: pl.DataFrame
    """For the rules on all examples: ``example_id, user_id, unseen, answers, fit``; ``fit`` writes the hints."""
    notes: pl.DataFrame
    """``PROVEN``; empty if no record is written."""
    newly_audited: int
    """Number of examples that were checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardAudit:
    """Inputs of the rules besides the shards."""

    shards: Path
    """Folder of the generate stage."""
    rows: SplitRows
    films: Mapping[str, Mapping[str, pl.DataFrame]]
    """``rules.liked_films`` by stage, of the specialists whose hints must name such films."""
    style: AnswerStyle
    """Answer style of the completions."""
    inline: Inline
    """What candidates' lines say after the title."""
    worked: Worked
    """Worked examples that every prompt shows."""
    limit: int | None
    """Leaks of one kind per batch; None: all."""
    viewers: pl.DataFrame | None
    """``SplitRows.digests``; None: no record is written, and all examples are checked."""
    record: Mapping[str, pl.DataFrame]
    """``PROVEN`` by group: examples to skip."""

    def prove(self, purpose: str, paths: Sequence[Path]) -> Found:
        """Apply the rules on single examples, with the titles of all given shards.

        Args:
            purpose: folder of the shards.
            paths: the shards of a group; the few examples that an incremental run adds to each are checked together.

        Raises:
            InputError: one has other columns than ``EXAMPLES``.
        """
        examples = pl.concat([read_rows(path, EXAMPLES) for path in paths])
        titles, left, notes = named_films(examples), examples, PROVEN.to_frame()
        if self.viewers is not None:
            group = paths[0].relative_to(self.shards).as_posix()
            notes = take_notes(group, examples, self.viewers, titles)
            left = unproven(examples, notes, self.record.get(group, PROVEN.to_frame()), titles)
        leaks = [leak for some in left.iter_slices(AT_A_TIME) for leak in self._prove(purpose, some, titles)]
        seen = examples.select("example_id", "user_id", "unseen", "answers", fit=pl.lit(FIT_OF[purpose]))
        return Found(leaks, seen, notes, left.height)

    def _prove(self, purpose: str, examples: pl.DataFrame, titles: pl.DataFrame) -> Iterator[Leak]:
        known = self.rows.of(examples["user_id"])
        yield from to_leaks(column_findings(examples, known, self.films, purpose), limit=self.limit)
        yield from to_leaks(stated_findings(examples, self.worked, purpose), limit=self.limit)
        found = text_findings(examples, titles, purpose, self.style, self.inline, self.worked)
        yield from to_leaks(found, limit=self.limit)

    def prove_worked(self) -> Iterator[Leak]:
        """Apply the rules on the worked examples, which are training examples themselves."""
        rows = self.worked.rows
        if rows.is_empty():
            return
        yield from to_leaks(worked_findings(self.worked), limit=self.limit)
        yield from to_leaks(column_findings(rows, self.rows.of(rows["user_id"]), self.films, "train"), limit=self.limit)
        found = text_findings(rows, named_films(rows), "train", self.style, self.inline)
        yield from to_leaks(found, limit=self.limit)
