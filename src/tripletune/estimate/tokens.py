"""Lengths of the training examples: from finished shards, else from settings as a bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from tripletune.config import RunConfig
from tripletune.schemas.generate import COMPLETION_CHARS, PROMPT_CHARS
from tripletune.store.read import scan_parquet
from tripletune.store.shards import shard_files

_CHARS_PER_TOKEN = 3.4
"""Of the tiny model's tokenizer, which does not exist before its training: see ``benchmarks/estimate.md``."""
_COMPLETION = 60
"""Tokens of an answer of five titles, where there are no shards."""
_EXAMPLES = 1000
_ROWS_FOR_SHARES = 1000


@dataclass(frozen=True, slots=True)
class Tokens:
    """Training examples as the objective reads them."""

    examples: int
    mean: float
    """Tokens of an example."""
    longest: int
    predicted: float
    """Places of an example whose logits are needed."""
    valid: int | None
    """Valid examples of the users who select; None: not known."""
    assumptions: tuple[str, ...]
    """What was assumed because it is not known yet."""


def read_tokens(shards: Path, config: RunConfig) -> Tokens:
    """Lengths in the shards of a finished generate stage."""
    train = shard_files(shards / "train")
    chars = PROMPT_CHARS + COMPLETION_CHARS
    scan = scan_parquet(train)
    share = float(
        scan.head(_ROWS_FOR_SHARES).select((COMPLETION_CHARS / chars).mean()).collect(engine="streaming").item() or 0.0
    )
    counted = scan.select(pl.col("num_tokens").is_not_null().all()).collect(engine="streaming").item()
    length = pl.col("num_tokens") if counted else chars / _CHARS_PER_TOKEN
    found = scan.select(pl.len(), length.mean().alias("mean"), length.max().alias("longest"))
    (row,) = found.collect(engine="streaming").iter_rows(named=True)
    valid = shard_files(shards / "valid")
    number = int(scan_parquet(valid).select(pl.len()).collect().item()) // 2 if valid else 0
    kept = 1 - share if config.finetune.scores_labels else 1.0  # objectives over labels read the prompt alone
    return Tokens(
        examples=int(row["len"]),
        mean=float(row["mean"] or 0.0) * kept,
        longest=round(float(row["longest"] or 0.0) * kept),
        predicted=1.0 if config.finetune.scores_labels else share * float(row["mean"] or 0.0),
        valid=number,
        assumptions=() if counted else (f"{_CHARS_PER_TOKEN} characters a token: the tokenizer does not exist yet",),
    )


def assume_tokens(config: RunConfig, examples: int | None) -> Tokens:
    """Bounds from settings, before there are shards.

    Args:
        config: of the run.
        examples: as a user states it; None: a thousand.
    """
    bound = config.prompt.max_tokens or config.finetune.max_length
    name = "prompt.max_tokens" if config.prompt.max_tokens else "finetune.max_length"
    said = [f"each example has {name} = {bound} tokens, the most there can be: no shards yet"]
    if examples is None:
        said.append(f"{_EXAMPLES:,} examples (--examples): time and steps grow with their number")
    return Tokens(
        examples=examples or _EXAMPLES,
        mean=float(bound),
        longest=bound,
        predicted=1.0 if config.finetune.scores_labels else float(min(_COMPLETION, bound)),
        valid=None,
        assumptions=tuple(said),
    )


def with_short_forms(lists: Tokens, config: RunConfig) -> Tokens:
    """The examples of a training on all forms of its lists: a bound, as a short form is shorter than its list."""
    if not config.ensemble.forms:
        return lists
    said = (
        f"{' and '.join(config.ensemble.forms)} forms (ensemble.forms) are as long as their lists, the most they can be"
    )
    examples = lists.examples * (1 + len(config.ensemble.forms))
    return replace(lists, examples=examples, assumptions=(*lists.assumptions, said))
