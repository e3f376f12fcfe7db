"""Processing of the split's buckets in retrieve: select the queries, compute their rows, write the files.

An increment has few new queries per bucket; those of several buckets are then computed in one batch, since a query
costs little compared with the work common to a batch. The output is the same: a user's rows do not depend on the other
queries of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.config import RetrieveConfig
from tripletune.retrieve.histories import (
    find_answers,
    find_history,
    find_questions,
    find_seen,
    read_rows,
    with_request_time,
)
from tripletune.retrieve.profiles import find_profiles
from tripletune.retrieve.retriever import Retriever, films_to_explain
from tripletune.retrieve.reuse import EarlierOutput, digest_users
from tripletune.retrieve.sampling import keep_drawn
from tripletune.schemas.base import conform
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.retrieve import COUNTS
from tripletune.store.parquet import write_parquet
from tripletune.store.shards import shard_name

ROW_GROUP = 1 << 16
ASKED_AT_ONCE = 2048
"""Number of collected queries at which a batch is computed; a bucket of MovieLens 32M has some 3,000 of each purpose
in a full run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket of the split before its queries are computed."""

    name: str
    """Name of its file in every folder."""
    rows: pl.DataFrame
    """Split rows of the users with a query to compute."""
    viewers: pl.DataFrame
    """``schemas.VIEWERS`` of all users."""
    asked: pl.DataFrame
    """Queries to compute: ``user_id, purpose, unseen, cutoff``."""
    kept: pl.DataFrame
    """Queries (``schemas.QUERY_KEY``) whose rows come from an earlier run."""
    changes: pl.DataFrame | None
    """``increments.compare_users``; None: there is no earlier run."""
    left_out: pl.DataFrame
    """Queries dropped because their fit was trained on an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A bucket whose files are written: the parts needed for the facts."""

    counts: pl.DataFrame
    """``schemas.COUNTS`` of all queries."""
    kept: pl.DataFrame
    changes: pl.DataFrame | None
    left_out: pl.DataFrame
    """As in ``Bucket``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Selection of queries, the retriever that computes them, and the earlier run to reuse."""

    retriever: Retriever
    settings: RetrieveConfig
    num_liked_triples: int
    only_users: pl.Series | None
    """``histories.read_only_users``."""
    drawn: pl.DataFrame | None
    """``sampling.sample_users``; None: all users."""
    known: pl.DataFrame
    """``histories.find_seen_in_training``."""
    ranked: pl.Series | None
    """``rankings.ranked_viewers``."""
    earlier_run: EarlierOutput | None
    out: Path

    def write_buckets(self, files: Mapping[str, Path]) -> tuple[list[Written], list[pl.DataFrame]]:
        """Compute the queries of some buckets, reuse the earlier run's rows, and write ``TABLES`` and ``viewers``.

        Args:
            files: of the split, by number.

        Returns:
            The buckets, and ``schemas.RANKINGS`` of the computed queries.
        """
        done: list[Written] = []
        rankings: list[pl.DataFrame] = []
        waiting: list[Bucket] = []
        for left, (number, path) in zip(reversed(range(len(files))), files.items(), strict=True):
            waiting.append(self._open(shard_name(number), path))
            if not left or sum(len(bucket.asked) for bucket in waiting) >= ASKED_AT_ONCE:
                tables, ranked = self._answer(waiting)
                done += [self._write(bucket, tables) for bucket in waiting]
                rankings.append(ranked)
                waiting = []
        return done, rankings

    def _open(self, name: str, path: Path) -> Bucket:
        rows = read_rows([path]).collect()
        found = find_questions(rows, self.only_users, train_cutoffs=self.settings.train_cutoffs).filter(
            pl.col("purpose").is_in(self.settings.purposes)
        )
        found = found if self.drawn is None else keep_drawn(found, self.drawn)
        queries = found.join(self.known, on=["user_id", "purpose"], how="anti", maintain_order="left")
        viewers = digest_users(rows)
        changes, kept = None, queries.select(QUERY_KEY).clear()
        if self.earlier_run:
            changes = self.earlier_run.compare(name, viewers)
            kept = self.earlier_run.keep(name, changes.filter(pl.col("why").is_null()), queries, self.ranked)
        asked = queries.join(kept, on=QUERY_KEY, how="anti", maintain_order="left")
        return Bucket(
            name=name,
            rows=rows.join(asked, on="user_id", how="semi", maintain_order="left") if self.earlier_run else rows,
            viewers=viewers,
            asked=asked,
            kept=kept,
            changes=changes,
            left_out=found.join(self.known, on=["user_id", "purpose"], how="semi").select(QUERY_KEY),
        )

    def _answer(self, buckets: Sequence[Bucket]) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
        """The rows of ``TABLES`` of all queries to compute, and their rankings."""
        asked, rows = (pl.concat(frames) for frames in zip(*((b.asked, b.rows) for b in buckets), strict=True))
        history, answers = find_history(rows, asked), find_answers(rows, asked)
        retriever = self.retriever
        retrieved, choices, rankings = retriever.retrieve_and_rank(
            with_request_time(asked, rows) if retriever.reads_request_time else asked,
            history,
            find_seen(rows, asked),
            answers,
            self.ranked,
        )
        tables = {
            "retrieved": retrieved,
            "choices": choices,
            "profiles": find_profiles(retriever.rgat, retriever.relations, asked, history),
            "counts": _count(retrieved, choices, history, answers, self.num_liked_triples),
        }
        return tables, rankings

    def _write(self, bucket: Bucket, tables: Mapping[str, pl.DataFrame]) -> Written:
        whole = {}
        for table, rows in tables.items():
            mine = rows.join(bucket.asked, on=QUERY_KEY, how="semi", maintain_order="left")
            whole[table] = self.earlier_run.add(table, bucket.name, mine, bucket.kept) if self.earlier_run else mine
        for table, frame in {**whole, "viewers": bucket.viewers}.items():
            write_table(self.out / table / bucket.name, frame)
        return Written(counts=whole["counts"], kept=bucket.kept, changes=bucket.changes, left_out=bucket.left_out)


def write_table(path: Path, frame: pl.DataFrame) -> None:
    """Write a file of the retrieve stage, with the same bytes on any number of threads."""
    # the bytes depend on the chunks, and these on the number of threads
    write_parquet(path, frame.rechunk(), row_group_size=ROW_GROUP)


def _count(
    retrieved: pl.DataFrame, choices: pl.DataFrame, history: pl.DataFrame, answers: pl.DataFrame, num_liked: int
) -> pl.DataFrame:
    """``schemas.COUNTS``."""
    found = answers.join(retrieved.select(*QUERY_KEY, "candidates"), on=QUERY_KEY).with_columns(
        hit=pl.col("movie_id").is_in(pl.col("candidates"))
    )
    counts = retrieved.select(QUERY_KEY)
    for part in (
        found.group_by(QUERY_KEY).agg(answers=pl.len(), hits=pl.col("hit").sum()),
        films_to_explain(retrieved, history, num_liked).group_by(QUERY_KEY).agg(pairs=pl.len()),
        choices.filter(pl.col("rank") == 0).group_by(QUERY_KEY).agg(told=pl.len()),
    ):
        counts = counts.join(part, on=QUERY_KEY, how="left", maintain_order="left")
    return conform(counts.fill_null(0), COUNTS)
