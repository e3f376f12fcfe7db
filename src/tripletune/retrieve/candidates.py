"""The retrieve stage: candidates, hint 1 and hint 2 of every viewer and purpose, bucket by bucket of the split.

What is computed is in ``retriever.py``; this file walks over the buckets, writes, and counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from tripletune.config import RetrieveConfig
from tripletune.paths import Facts, write_atomically
from tripletune.retrieve.profiles import find_profiles
from tripletune.retrieve.retriever import Retriever, told_films
from tripletune.retrieve.specialists import FIT_OF
from tripletune.retrieve.viewers import (
    find_answers,
    find_history,
    find_questions,
    find_seen,
    read_rows,
    shard_files,
)
from tripletune.schemas import QUESTION, RANKINGS

ROW_GROUP = 1 << 16


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
) -> Facts:
    """The retrieve stage: ``retrieved/shard-NNN.parquet``, ``choices/shard-NNN.parquet``,
    ``profiles/shard-NNN.parquet``, ``rankings.parquet``.

    Where EASE was fitted, also ``trained_on.parquet``: the likes that it was fitted to, for the audit.

    Args:
        split, knowledge, lightgcn, rgat: folders of the finished stages.
        out: work folder; one shard per bucket of the split, under the same number.
        num_liked_triples: newest liked films that get triples beside the candidates.
        sasrec: folder of that stage, where it is one of the run's.

    Returns:
        Counts, and ``ceiling``: the share of valid and of test answers that are among the candidates, which no
        re-ranking can exceed (1 by construction for ``kerag``).

    Raises:
        InputError: an input is missing, damaged or does not fit the others.
    """
    retriever = Retriever.load(
        split,
        knowledge,
        lightgcn,
        rgat,
        settings,
        num_liked_triples=num_liked_triples,
        seed=seed,
        sasrec=sasrec,
        rankings=True,
    )
    for name in ("retrieved", "choices", "profiles"):
        (out / name).mkdir(exist_ok=True)
    rankings, counts = [RANKINGS.to_frame()], []
    for number, path in shard_files(split).items():
        rows = read_rows([path]).collect()
        questions = find_questions(rows)
        asked = (questions, find_history(rows, questions), find_seen(rows, questions), find_answers(rows, questions))
        retrieved, choices, ranked = retriever.retrieve_and_rank(*asked)
        write_atomically(out / "retrieved" / f"shard-{number}.parquet", _writer(retrieved))
        write_atomically(out / "choices" / f"shard-{number}.parquet", _writer(choices))
        profiles = find_profiles(retriever.rgat, retriever.tables, questions, asked[1])
        write_atomically(out / "profiles" / f"shard-{number}.parquet", _writer(profiles))
        rankings.append(ranked)
        counts.append(_count(retrieved, choices, asked[1], asked[3], num_liked_triples))
    by_question = pl.concat(rankings).sort(*QUESTION, "retriever")
    write_atomically(out / "rankings.parquet", _writer(by_question))
    ease = retriever.ease_fits()
    if ease:
        write_atomically(out / "trained_on.parquet", _writer(retriever.trained_on()))
    facts = _facts(pl.concat(counts), num_films=len(next(iter(retriever.lightgcn.values())).catalogue))
    return facts | {"ease_films": {fit: len(one.columns_F) for fit, one in ease.items()}}


def _writer(frame: pl.DataFrame) -> Callable[[Path], None]:
    return lambda path: frame.write_parquet(path, compression="zstd", row_group_size=ROW_GROUP)


def _count(
    retrieved: pl.DataFrame, choices: pl.DataFrame, history: pl.DataFrame, answers: pl.DataFrame, num_liked: int
) -> pl.DataFrame:
    found = answers.join(retrieved.select(*QUESTION, "candidates"), on=QUESTION).with_columns(
        hit=pl.col("movie_id").is_in(pl.col("candidates"))
    )
    return pl.concat(
        [
            retrieved.group_by("purpose").agg(viewers=pl.len()),
            found.group_by("purpose").agg(answers=pl.len(), hits=pl.col("hit").sum()),
            told_films(retrieved, history, num_liked).group_by("purpose").agg(pairs=pl.len()),
            choices.filter(pl.col("rank") == 0).group_by("purpose").agg(told=pl.len()),
        ],
        how="diagonal",
    )


def _facts(counts: pl.DataFrame, num_films: int) -> Facts:
    total = {row["purpose"]: row for row in counts.group_by("purpose").sum().iter_rows(named=True)}
    num_pairs = sum(row["pairs"] for row in total.values())
    return {
        "films": num_films,
        "viewers": {purpose: total[purpose]["viewers"] for purpose in FIT_OF if purpose in total},
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
