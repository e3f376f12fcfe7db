"""Worked examples (few-shot): some training examples with their answers, shown in every prompt of a run.

They are those of the training users who come first by a seeded hash, so that they depend on nothing that is asked. Each
is rendered as ``build_examples`` renders a training example, at its own cutoff, and shown without the answer's
instruction, which stands once, at the end of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.errors import ConfigError, MissingArtifactError
from tripletune.prompts.engine import Frame, build_examples
from tripletune.prompts.evidence import SPLIT_COLUMNS, collect_answers, collect_evidence
from tripletune.prompts.template import Shots
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.query import QUERY_KEY
from tripletune.schemas.worked import WORKED_ROWS, WORKED_TEXT, WorkedExamples
from tripletune.stable_hash import share_hash_expr
from tripletune.store.files import make_folder, write_atomically
from tripletune.store.parquet import write_parquet
from tripletune.store.read import read_parquet, scan_parquet
from tripletune.store.shards import shard_files, split_files

_ORDER = 16 << 40
"""Added to the run's seed for the order of the users, which is apart from all others."""
_AT_ONCE = 8
"""Users rendered at once for each example: not all have an answer among their candidates."""


def write_worked(split: Path, retrieve: Path, out: Path, frame: Frame, dislike: float) -> WorkedExamples:
    """Choose the worked examples of a run, and write ``WORKED_ROWS`` and ``WORKED_TEXT``.

    Args:
        split, retrieve: folders of the finished stages.
        out: generate's work folder.
        frame: of the run, without worked examples.
        dislike: a rating below this is a dislike.

    Raises:
        ConfigError: the template shows none, or there are fewer training users than wanted.
    """
    number = frame.settings.worked_examples
    shown = frame.template.of_example()
    assert shown.shots is not None
    # the budget is that of whole prompts, in which the examples are fixed text
    plain = replace(frame, template=shown, counter=None, settings=frame.settings.model_copy(update={"max_tokens": 0}))
    users = _training_users(retrieve, frame.seed)
    chosen = EXAMPLES.to_frame()
    for asked in users.iter_slices(_AT_ONCE * number):
        chosen = pl.concat([chosen, _render(split, retrieve, asked, plain, dislike)])
        if len(chosen) >= number:
            break
    if len(chosen) < number:
        raise ConfigError(
            f"prompt.worked_examples = {number}, and {len(chosen)} training users have an answer among their "
            f"candidates; set it to {len(chosen)} or less"
        )
    chosen = chosen.head(number)
    text = "\n\n".join(_text(row, shown.shots) for row in chosen.iter_rows(named=True))
    make_folder((out / WORKED_ROWS).parent, "--artifacts")
    write_parquet(out / WORKED_ROWS, chosen)
    write_atomically(out / WORKED_TEXT, lambda part: part.write_text(text, encoding="utf-8"))
    return read_worked(out)


def read_worked(generate: Path) -> WorkedExamples:
    """The worked examples of finished shards, for prompts like theirs.

    Raises:
        MissingArtifactError: they have none.
    """
    try:
        rows = read_parquet(generate / WORKED_ROWS, columns=["example_id", "user_id"])
        text = (generate / WORKED_TEXT).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingArtifactError(
            f"{generate} has no worked examples; produce them with: tripletune generate"
        ) from None
    return WorkedExamples(text, tuple(rows["example_id"]), tuple(rows["user_id"]))


def _training_users(retrieve: Path, seed: int) -> pl.DataFrame:
    """Each training user's newest query, in the order in which they are taken: ``user_id, purpose, cutoff``."""
    asked = scan_parquet(shard_files(retrieve / "retrieved")).filter(pl.col("purpose") == "train", ~pl.col("unseen"))
    newest = asked.group_by("user_id").agg(pl.col("purpose").first(), pl.col("cutoff").max()).collect()
    return newest.sort(share_hash_expr("user_id", seed + _ORDER), "user_id").select(QUERY_KEY)


def _render(split: Path, retrieve: Path, asked: pl.DataFrame, frame: Frame, dislike: float) -> pl.DataFrame:
    """Examples of these queries that have an answer, in the order of the queries."""
    mine = pl.col("user_id").is_in(asked["user_id"].implode())
    wanted = asked.lazy()
    retrieved = scan_parquet(shard_files(retrieve / "retrieved")).filter(mine).join(wanted, on=QUERY_KEY, how="semi")
    choices = scan_parquet(shard_files(retrieve / "choices")).filter(mine).join(wanted, on=QUERY_KEY, how="semi")
    files = list(split_files(split).values())
    rows = scan_parquet(files, hive_partitioning=False).select(SPLIT_COLUMNS).filter(mine).collect()
    settings = frame.settings
    evidence = collect_evidence(
        rows, asked, dislike=dislike, max_liked=settings.max_liked, max_disliked=settings.max_disliked
    )
    examples = build_examples(retrieved.collect(), choices.collect(), evidence, collect_answers(rows, asked), frame)
    return asked.join(examples, on=QUERY_KEY, maintain_order="left").select(EXAMPLES.names())


def _text(example: Mapping[str, Any], shots: Shots) -> str:
    """An example as a prompt shows it."""
    (user,) = (message["content"] for message in example["prompt"] if message["role"] == "user")
    return f"{user}\n\n{shots.answered}\n{example['completion'][0]['content']}"
