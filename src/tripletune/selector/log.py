"""The log of an earlier run: what the right answer of a training question gained by each probed fact.

A row's reward is the change of the right answer's log-probability (tuned model alone) by the fact. It comes with the
probability that the fact was shown (``propensity``, of retrieve) and that it was probed (``share``, of probe).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.audit.feedback import find_other_questions, refuse_other_questions
from tripletune.errors import InputError
from tripletune.schemas.probe import FACT_CHANGES, FACT_CHANGES_NAME
from tripletune.schemas.query import QUERY_KEY
from tripletune.store.parquet import parquet_files, read_rows, scan

KEY = (*QUERY_KEY, "movie_id", "relation", "entity")
"""Key of a logged fact."""


@dataclass(frozen=True, slots=True)
class RunLog:
    """Folders of one finished run."""

    probe: Path
    generate: Path
    retrieve: Path
    split: Path


@dataclass(frozen=True, slots=True)
class Feedback:
    """Facts to learn from."""

    facts: pl.DataFrame
    """``KEY, reward, propensity, share``, sorted by key; propensities sum to one over a film's triples."""
    dropped: dict[str, int]
    """Facts of the log that are not among them, by reason."""


def read_log(run: RunLog, split: Path) -> Feedback:
    """Read a log, and prove that its examples are training questions, of that run and of the present one.

    Args:
        run: that the log is of.
        split: folder of the present run's split, which may hold out what was a training answer then: such examples are
            dropped.

    Raises:
        InputError: a file is missing or damaged; an example is no training question of its own split; a fact was not
            chosen by that run.
    """
    path = run.probe / FACT_CHANGES_NAME
    whole = read_rows(path, FACT_CHANGES).filter(pl.col("how") == "without", pl.col("system") == "tuned")
    facts = whole.filter(pl.col("purpose") == "train", pl.col("change").is_finite())
    dropped = {"of valid or test": len(whole.filter(pl.col("purpose") != "train"))}
    examples = _examples(facts, run.generate, path)
    if len(examples):
        refuse_other_questions(examples, run.split, path)
        others = find_other_questions(examples, split)
        kept = facts.join(others, on="example_id", how="anti", maintain_order="left")
        dropped["no training question any more"] = len(facts) - len(kept)
        facts = kept
    # of several facts of a film each one is a choice of its own, drawn from them
    among = pl.len().over(*QUERY_KEY, "movie_id")
    asked = facts.lazy().select(QUERY_KEY).unique()
    choices = scan(parquet_files(run.retrieve, "choices")).join(asked, on=QUERY_KEY, how="semi")
    chosen = choices.select(*KEY, propensity=pl.col("propensity") / among)
    found = facts.lazy().join(chosen, on=KEY, how="left").collect()
    if found["propensity"].null_count():
        missing = found.filter(pl.col("propensity").is_null()).row(0, named=True)
        raise InputError(
            f"{path}: {missing['example_id']} was probed with a fact of film {missing['movie_id']} that "
            f"{run.retrieve} did not choose; run probe again"
        )
    return Feedback(found.select(*KEY, "propensity", "share", reward="change").sort(KEY), dropped)


def _examples(facts: pl.DataFrame, generate: Path, path: Path) -> pl.DataFrame:
    """The logged examples with their answers, from the training shards; one that is not there is refused."""
    logged = facts.select("example_id", "user_id", "cutoff").unique(maintain_order=True)
    if logged.is_empty():
        return logged
    shards = scan(parquet_files(generate, "train")).select("example_id", "user_id", "cutoff", "answers")
    found = shards.join(logged.lazy(), on=["example_id", "user_id", "cutoff"], how="semi").collect()
    others = logged.join(found, on=["example_id", "user_id", "cutoff"], how="anti", maintain_order="left")
    if len(others):
        raise InputError(
            f"{path}: {others['example_id'][0]} is no training example of {generate}; nothing is learned from valid or "
            "test: run probe again"
        )
    return found
