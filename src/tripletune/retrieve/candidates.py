"""The retrieve stage: candidates, hint 1 and hint 2 of every query, bucket by bucket of the split.

This module loads the inputs, runs over the buckets and counts. Computation is in ``retriever.py``, reuse of an earlier
run's rows in ``reuse.py``, the processing of a bucket in ``buckets.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from tripletune.config import RetrieveConfig, SampleConfig
from tripletune.retrieve.buckets import Asking, Written, write_table
from tripletune.retrieve.histories import find_seen_in_training, read_only_users, read_rows
from tripletune.retrieve.rankings import ranked_viewers
from tripletune.retrieve.recent import RecentLikes, rank_recent, read_starts
from tripletune.retrieve.requery import requery
from tripletune.retrieve.retriever import Retriever
from tripletune.retrieve.reuse import TABLES, EarlierOutput
from tripletune.retrieve.sampling import sample_facts, sample_users
from tripletune.schemas.query import FIT_OF, QUERY_KEY
from tripletune.schemas.retrieve import RANKINGS
from tripletune.store.increments import count_changes
from tripletune.store.paths import Facts
from tripletune.store.shards import split_files
from tripletune.threads import map_in_threads, num_threads

BUCKETS_AT_ONCE = 8
"""Buckets processed in parallel at most; one of 3,000 users of MovieLens 32M takes some 300 MB."""
TURNS_OF_INCREMENT = 4
"""Groups that an increment's buckets are divided into, at least; a group computes its few queries in one batch."""
EVERYBODY = SampleConfig()


def retrieve_all(
    split: Path,
    knowledge: Path,
    trained: Mapping[str, Path],
    out: Path,
    settings: RetrieveConfig,
    *,
    num_liked_triples: int,
    seed: int,
    sample: SampleConfig = EVERYBODY,
    fusion: Path | None = None,
    ingest: Path | None = None,
    selector: Path | None = None,
    earlier: Path | None = None,
) -> Facts:
    """Run the retrieve stage.

    Writes ``shard-NNN.parquet`` in ``retrieved``, ``choices``, ``profiles``, ``counts`` and ``viewers``,
    ``rankings.parquet`` and ``requeried.parquet``; with a sample of training users also ``sample.parquet``.

    Args:
        split, knowledge: folders of the finished stages.
        trained: folders of the trained models' stages, by name: ``lightgcn``, ``rgat`` and the retrievers.
        out: work folder; one shard per bucket of the split, under the same number.
        num_liked_triples: newest liked films that get triples as well as the candidates.
        sample: selection of users for training queries.
        fusion: folder of that stage; None: the weights of the fused list are the config's.
        ingest: folder of that stage, where ``settings.similar_people`` asks for the users' attributes; None: not used.
        selector: folder of that stage, where ``settings.triple_choice`` is ``learned``; None: not used.
        earlier: a finished output that differs from this one in ratings alone; rows are reused from it.

    Returns:
        Counts; ``ceiling``: the share of valid and of test answers that are among the candidates, which no re-ranking
        can exceed (1 by construction for ``kerag``); by purpose, the queries dropped because their fit was trained on
        an answer; with ``earlier``, how many users were reused, and why the others were not; of a learned choice,
        ``triples_chosen_by``: personal where the selector was refused.

    Raises:
        InputError: an input is missing, damaged or does not fit the others.
    """
    files = split_files(split)
    fits = tuple(sorted({FIT_OF[purpose] for purpose in settings.purposes}))
    retriever = Retriever.load(
        knowledge,
        trained,
        settings,
        num_liked_triples=num_liked_triples,
        seed=seed,
        fits=fits,
        fusion=fusion,
        ingest=ingest,
        selector=selector,
    )
    only_users = read_only_users(split)
    for name in (*TABLES, "viewers"):
        (out / name).mkdir(exist_ok=True)
    drawn = _draw(files, retriever, sample, out)
    asking = Asking(
        retriever=retriever,
        settings=settings,
        num_liked_triples=num_liked_triples,
        only_users=only_users,
        drawn=drawn,
        known=find_seen_in_training(list(files.values()), trained["lightgcn"]),
        ranked=_ranked(files, only_users, settings, seed),
        earlier_run=EarlierOutput.open(earlier) if earlier else None,
        out=out,
    )
    done, rankings = _ask_all(asking, files)
    counts = pl.concat(bucket.counts for bucket in done)
    _write_lists(asking, rankings, counts.select(QUERY_KEY), _recent(split, files, retriever), files)
    facts = _facts(counts, len(next(iter(retriever.lightgcn.values())).catalogue)) | _changes(done)
    if settings.triple_choice == "learned":
        facts["triples_chosen_by"] = "learned" if retriever.selectors else "personal"
    return facts if drawn is None else facts | {"sample": sample_facts(drawn, sample.method)}


def _draw(files: Mapping[str, Path], retriever: Retriever, sample: SampleConfig, out: Path) -> pl.DataFrame | None:
    """Draw the training users and write ``sample.parquet``; None with all users, or without training queries."""
    if sample.method == "all" or "train" not in retriever.settings.purposes:
        return None
    drawn = sample_users(read_rows(list(files.values())), retriever.lightgcn["a"], sample, retriever.seed)
    write_table(out / "sample.parquet", drawn)
    return drawn


def _recent(split: Path, files: Mapping[str, Path], retriever: Retriever) -> RecentLikes | None:
    """Likes of the recent list; None where no query is ranked, or under a protocol without a date for all users."""
    starts = read_starts(split)
    if not starts or "b" not in retriever.lightgcn:
        return None
    catalogue, counts_M = retriever.lightgcn["b"].catalogue, retriever.neighbours["b"].like_counts_M
    return RecentLikes.read(list(files.values()), catalogue, counts_M, starts)


def _ranked(
    files: Mapping[str, Path], only_users: pl.Series | None, settings: RetrieveConfig, seed: int
) -> pl.Series | None:
    """Ids of the users for whom every retriever ranks the whole catalogue; None: all users."""
    rows = read_rows(list(files.values()))
    askable = rows if only_users is None else rows.filter(pl.col("user_id").is_in(only_users.implode()))
    return ranked_viewers(askable, settings.ranked_viewers, seed)


def _ask_all(asking: Asking, files: Mapping[str, Path]) -> tuple[list[Written], pl.DataFrame]:
    """Write the files of every bucket; returns the buckets and ``schemas.RANKINGS``, sorted."""
    numbers = list(files)
    num_turns = max(TURNS_OF_INCREMENT, num_threads(BUCKETS_AT_ONCE)) if asking.earlier_run else len(numbers)
    several = math.ceil(len(numbers) / num_turns)
    turns = [numbers[start : start + several] for start in range(0, len(numbers), several)]
    written = map_in_threads(
        lambda turn: asking.write_buckets({number: files[number] for number in turn}), turns, most=BUCKETS_AT_ONCE
    )
    done = [bucket for buckets, _ in written for bucket in buckets]
    rankings = [RANKINGS.to_frame(), *(part for _, parts in written for part in parts)]
    if asking.earlier_run:
        rankings.append(asking.earlier_run.ranked(pl.concat(bucket.kept for bucket in done), asking.ranked))
    return done, pl.concat(rankings).sort(*QUERY_KEY, "retriever").rechunk()


def _write_lists(
    asking: Asking, rankings: pl.DataFrame, queries: pl.DataFrame, recent: RecentLikes | None, files: Mapping[str, Path]
) -> None:
    """Write ``rankings.parquet``, with the recent list where there is one, and ``requeried.parquet``."""
    if recent is not None:
        rankings = pl.concat([rankings, rank_recent(rankings, files.values(), recent)]).sort(*QUERY_KEY, "retriever")
    write_table(asking.out / "rankings.parquet", rankings)
    write_table(asking.out / "requeried.parquet", requery(files, asking.retriever, queries, recent, asking.ranked))


def _changes(done: Sequence[Written]) -> Facts:
    """Facts: users whose queries were dropped because their fit was trained on an answer, by purpose, and with an
    earlier output the reuse."""
    left_out = pl.concat(bucket.left_out for bucket in done).group_by("purpose").agg(pl.col("user_id").n_unique())
    left_out = left_out.sort("purpose")
    changes = [bucket.changes for bucket in done if bucket.changes is not None]
    return {
        "left_out_known_to_fit": dict(left_out.iter_rows()),
        **(count_changes(pl.concat(changes)) if changes else {}),
    }


def _facts(counts: pl.DataFrame, num_films: int) -> Facts:
    summed = counts.group_by("purpose").agg(
        pl.col("answers", "hits", "pairs", "told").sum(), viewers=pl.n_unique("user_id"), questions=pl.len()
    )
    total = {row["purpose"]: row for row in summed.iter_rows(named=True)}
    num_pairs = sum(row["pairs"] for row in total.values())
    return {
        "films": num_films,
        **{
            name: {purpose: total[purpose][name] for purpose in FIT_OF if purpose in total}
            for name in ("viewers", "questions")
        },
        "ceiling": {
            purpose: round(total[purpose]["hits"] / total[purpose]["answers"], 6)
            for purpose in ("valid", "test")
            if purpose in total
        },
        "pairs": num_pairs,
        "pairs_without_triple": round(1 - sum(row["told"] for row in total.values()) / num_pairs, 6)
        if num_pairs
        else 0.0,
    }
