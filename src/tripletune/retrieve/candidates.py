"""The retrieve stage: candidates, hint 1 and hint 2 of every question, bucket by bucket of the split.

What is computed is in ``retriever.py``, what an earlier night has computed in ``earlier.py``; this file walks over the
buckets, writes, and counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.config import RetrieveConfig, SampleConfig
from tripletune.increments import count_changes
from tripletune.paths import Facts, write_atomically
from tripletune.retrieve.earlier import TABLES, EarlierNight, digest_viewers
from tripletune.retrieve.profiles import find_profiles
from tripletune.retrieve.rankings import ranked_viewers
from tripletune.retrieve.retriever import Retriever, told_films
from tripletune.retrieve.sampling import keep_drawn, sample_facts, sample_viewers
from tripletune.retrieve.specialists import FIT_OF
from tripletune.retrieve.viewers import (
    find_answers,
    find_history,
    find_known,
    find_questions,
    find_seen,
    read_asked,
    read_rows,
    shard_files,
)
from tripletune.schemas import COUNTS, QUESTION, RANKINGS, conform
from tripletune.threads import map_in_threads

ROW_GROUP = 1 << 16
BUCKETS_AT_ONCE = 8
"""At the most; a bucket of 3,000 viewers of MovieLens 32M takes some 300 MB while it is worked on."""
EVERYBODY = SampleConfig()


def retrieve_all(
    split: Path,
    knowledge: Path,
    lightgcn: Path,
    rgat: Path,
    out: Path,
    settings: RetrieveConfig,
    *,
    num_liked_triples: int,
    seed: int,
    sasrec: Path | None = None,
    ease: Path | None = None,
    sample: SampleConfig = EVERYBODY,
    earlier: Path | None = None,
) -> Facts:
    """The retrieve stage: ``shard-NNN.parquet`` in ``retrieved``, ``choices``, ``profiles``, ``counts`` and
    ``viewers``, and ``rankings.parquet``.

    Where not everybody is asked for training, also ``sample.parquet``.

    Args:
        split, knowledge, lightgcn, rgat: folders of the finished stages.
        out: work folder; one shard per bucket of the split, under the same number.
        num_liked_triples: newest liked films that get triples beside the candidates.
        sasrec, ease: folders of those stages, where they are the run's.
        sample: whom training questions are asked.
        earlier: a finished output that differs from this one in ratings alone; rows are taken over from it.

    Returns:
        Counts; ``ceiling``: the share of valid and of test answers that are among the candidates, which no re-ranking
        can exceed (1 by construction for ``kerag``); by purpose, the questions left out because their fit knows an
        answer; with ``earlier``, how many viewers were taken over, and why the others were not.

    Raises:
        InputError: an input is missing, damaged or does not fit the others.
    """
    retriever = Retriever.load(
        knowledge,
        lightgcn,
        rgat,
        settings,
        num_liked_triples=num_liked_triples,
        seed=seed,
        sasrec=sasrec,
        ease=ease,
        fits=tuple(sorted({FIT_OF[purpose] for purpose in settings.purposes})),
    )
    everybody = read_rows(list(shard_files(split).values()))
    for name in (*TABLES, "viewers"):
        (out / name).mkdir(exist_ok=True)
    drawn = None
    if sample.method != "all" and "train" in settings.purposes:
        drawn = sample_viewers(everybody, retriever.lightgcn["a"], sample, seed)
        write_atomically(out / "sample.parquet", _writer(drawn))
    asked_alone = read_asked(split)
    askable = everybody if asked_alone is None else everybody.filter(pl.col("user_id").is_in(asked_alone.implode()))
    ranked = ranked_viewers(askable, settings.ranked_viewers, seed)
    known = find_known(list(shard_files(split).values()), lightgcn)
    night = EarlierNight.open(earlier) if earlier else None

    def write_bucket(bucket: tuple[str, Path]) -> _Bucket:
        """Ask who is to be asked of a bucket, take the rest over from the earlier night, and write its files."""
        name, rows = f"shard-{bucket[0]}.parquet", read_rows([bucket[1]]).collect()
        found = find_questions(rows, asked_alone, train_cutoffs=settings.train_cutoffs).filter(
            pl.col("purpose").is_in(settings.purposes)
        )
        found = found if drawn is None else keep_drawn(found, drawn)
        questions = found.join(known, on=["user_id", "purpose"], how="anti", maintain_order="left")
        viewers = digest_viewers(rows)
        changes = night.compare(name, viewers) if night else None
        kept = questions.select(QUESTION).clear()
        if night and changes is not None:
            kept = night.keep(name, changes.filter(pl.col("why").is_null()), questions, ranked)
        asked = questions.join(kept, on=QUESTION, how="anti", maintain_order="left")
        history, answers = find_history(rows, asked), find_answers(rows, asked)
        retrieved, choices, rankings = retriever.retrieve_and_rank(
            asked, history, find_seen(rows, asked), answers, ranked
        )
        tables = {
            "retrieved": retrieved,
            "choices": choices,
            "profiles": find_profiles(retriever.rgat, retriever.relations, asked, history),
            "counts": _count(retrieved, choices, history, answers, num_liked_triples),
        }
        tables = {table: night.add(table, name, made, kept) if night else made for table, made in tables.items()}
        for table, whole in {**tables, "viewers": viewers}.items():
            write_atomically(out / table / name, _writer(whole))
        left_out = found.join(known, on=["user_id", "purpose"], how="semi").select(QUESTION)
        return _Bucket(tables["counts"], rankings, kept, changes, left_out)

    done = map_in_threads(write_bucket, shard_files(split).items(), most=BUCKETS_AT_ONCE)
    rankings = [RANKINGS.to_frame(), *(bucket.rankings for bucket in done)]
    if night:
        rankings.append(night.ranked(pl.concat(bucket.kept for bucket in done), ranked))
    by_question = pl.concat(rankings).sort(*QUESTION, "retriever").rechunk()
    write_atomically(out / "rankings.parquet", _writer(by_question))
    facts = _facts(
        pl.concat(bucket.counts for bucket in done), num_films=len(next(iter(retriever.lightgcn.values())).catalogue)
    )
    left_out = pl.concat(bucket.left_out for bucket in done)["purpose"].value_counts().sort("purpose")
    facts["left_out_known_to_fit"] = dict(left_out.iter_rows())
    changes = [bucket.changes for bucket in done if bucket.changes is not None]
    if changes:
        facts |= count_changes(pl.concat(changes))
    if drawn is not None:
        facts["sample"] = sample_facts(drawn, sample.method)
    return facts


@dataclass(frozen=True, slots=True)
class _Bucket:
    """What is left to do when a bucket is written."""

    counts: pl.DataFrame
    """``schemas.COUNTS`` of all questions."""
    rankings: pl.DataFrame
    """Of the questions asked."""
    kept: pl.DataFrame
    """Questions whose rows come from an earlier night."""
    changes: pl.DataFrame | None
    """``increments.compare_viewers``; None: there is no earlier night."""
    left_out: pl.DataFrame
    """Questions whose fit knows an answer."""


def _writer(frame: pl.DataFrame) -> Callable[[Path], None]:
    # bytes follow chunks, and chunks the number of threads
    return lambda path: frame.rechunk().write_parquet(path, compression="zstd", row_group_size=ROW_GROUP)


def _count(
    retrieved: pl.DataFrame, choices: pl.DataFrame, history: pl.DataFrame, answers: pl.DataFrame, num_liked: int
) -> pl.DataFrame:
    """``schemas.COUNTS``."""
    found = answers.join(retrieved.select(*QUESTION, "candidates"), on=QUESTION).with_columns(
        hit=pl.col("movie_id").is_in(pl.col("candidates"))
    )
    counts = retrieved.select(QUESTION)
    for part in (
        found.group_by(QUESTION).agg(answers=pl.len(), hits=pl.col("hit").sum()),
        told_films(retrieved, history, num_liked).group_by(QUESTION).agg(pairs=pl.len()),
        choices.filter(pl.col("rank") == 0).group_by(QUESTION).agg(told=pl.len()),
    ):
        counts = counts.join(part, on=QUESTION, how="left", maintain_order="left")
    return conform(counts.fill_null(0), COUNTS)


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
