"""The audit's rules on shards, group by group: what is proven already is passed over, what is not is proven."""

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
from tripletune.schemas.answers import AnswerStyle
from tripletune.schemas.generate import EXAMPLES, PROVEN
from tripletune.schemas.query import FIT_OF
from tripletune.store.parquet import read_rows

AT_A_TIME = 4096
"""Examples that the rules are asked about; the lines of their prompts take some 100 MB."""


class Found(NamedTuple):
    """What some shards hold."""

    leaks: list[Leak]
    seen: pl.DataFrame
    """For the rules on all examples: ``example_id, user_id, unseen, answers, fit``; ``fit`` writes the hints."""
    notes: pl.DataFrame
    """``schemas.PROVEN``; without rows where no notes are taken."""
    anew: int
    """How many examples needed a proof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardAudit:
    """What the rules ask beside the shards."""

    shards: Path
    """Generate's folder."""
    rows: SplitRows
    films: Mapping[str, Mapping[str, pl.DataFrame]]
    """``audit_rules.liked_films`` by stage, of the specialists whose hints must name such films."""
    style: AnswerStyle
    """In which the completions were written."""
    limit: int | None
    """Leaks of one kind at a time; None: all."""
    viewers: pl.DataFrame | None
    """``SplitRows.digests``; None: no notes are taken, and everything is proven."""
    record: Mapping[str, pl.DataFrame]
    """``schemas.PROVEN`` by group: what is proven already."""

    def prove(self, purpose: str, paths: Sequence[Path]) -> Found:
        """The rules that look at one example at a time, and know the titles of all shards given.

        Args:
            purpose: the folder that the shards lie in.
            paths: the shards; of few examples that a night adds to each, all are asked about at once.

        Raises:
            InputError: one has other columns than ``schemas.EXAMPLES``.
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
        yield from to_leaks(text_findings(examples, titles, purpose, self.style), limit=self.limit)
