"""Prompts of any queries, from a run's trained models: the retriever and the prompt function that made the shards.

The settings may be another run's: an adapter of another contract is then asked in its own way, with this run's models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.config import RunConfig
from tripletune.contract import TINY, AdapterContract
from tripletune.prompts.engine import Frame, build_examples
from tripletune.prompts.evidence import collect_evidence
from tripletune.retrieve.histories import find_answers, find_history, find_seen, read_rows, with_request_time
from tripletune.retrieve.retriever import Retriever
from tripletune.schemas.query import PURPOSES
from tripletune.serve.run_prompts import RunPrompts
from tripletune.store.paths import RunPaths

TODAY = "test"
"""Purpose whose fit (b, on everything up to valid) and hints serve a live recommendation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompter:
    """What makes prompts, loaded once for queries of any user."""

    retriever: Retriever
    frame: Frame
    dislike: float
    """A rating below this is a dislike."""

    @classmethod
    def load(cls, paths: RunPaths, config: RunConfig, tokenizer: tuple[str, str] | None) -> Prompter:
        """Load fit b of a run's trained models, and the template.

        Args:
            paths: of the run whose models retrieve.
            config: as for ``RunPrompts``; of it also ``split.dislike``.
            tokenizer: as for ``RunPrompts.frame``.

        Raises:
            UserError: as ``RunPrompts``.
        """
        opened = RunPrompts(paths, config)
        return cls(retriever=opened.retriever(("b",)), frame=opened.frame(tokenizer), dislike=config.split.dislike)

    def prompts(self, rows: pl.DataFrame, queries: pl.DataFrame) -> pl.DataFrame:
        """Examples of queries (``schemas.generate.EXAMPLES``), sorted by user, purpose and cutoff.

        Args:
            rows: the users' rows of the split (``schemas.split.SPLIT``); those from the cutoff on give the answers.
            queries: ``user_id, purpose, unseen, cutoff``; of purposes that fit b serves.
        """
        answers = find_answers(rows, queries)
        asked = with_request_time(queries, rows) if self.retriever.reads_request_time and answers.height else queries
        retrieved, choices = self.retriever.retrieve_users(
            asked, find_history(rows, queries), find_seen(rows, queries), answers
        )
        evidence = collect_evidence(
            rows,
            retrieved,
            dislike=self.dislike,
            max_liked=self.frame.settings.max_liked,
            max_disliked=self.frame.settings.max_disliked,
        )
        return build_examples(retrieved, choices, evidence, answers, self.frame)


def queries_of_today(rows: pl.DataFrame) -> pl.DataFrame:
    """One query for each user, after all of the user's rows: ``user_id, purpose, unseen, cutoff``."""
    return (
        rows.group_by("user_id")
        .agg(
            pl.lit(TODAY, dtype=PURPOSES).alias("purpose"),
            pl.col("unseen").first(),
            cutoff=pl.col("position").max() + 1,
        )
        .sort("user_id")
    )


def rows_of(files: Sequence[Path], users: pl.Series | None = None) -> pl.DataFrame:
    """Rows of some buckets of the split; of some users, or of all."""
    rows = read_rows(list(files))
    return (rows if users is None else rows.filter(pl.col("user_id").is_in(users.implode()))).collect()


def tokenizer_of_adapter(adapter: Path, contract: AdapterContract) -> tuple[str, str] | None:
    """Model and revision of the tokenizer that an adapter's prompts were counted with; None for ``tiny``, whose
    tokenizer is trained on the prompts."""
    if contract.base_model == TINY:
        return None
    base = adapter / "base"
    return (str(base), "") if base.is_dir() else (contract.base_model, contract.base_revision)
