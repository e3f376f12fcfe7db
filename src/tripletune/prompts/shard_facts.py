"""Counts of the finished shards for the manifest."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tripletune.schemas.generate import LEFT_OUT, PROMPT_CHARS
from tripletune.schemas.query import PURPOSES
from tripletune.store.paths import Facts
from tripletune.store.read import scan_parquet
from tripletune.store.shards import shard_files

_CHARS = "prompt_chars"
"""Key in a shard's footer: the sum of ``PROMPT_CHARS``. Counting from the file would read all prompts again."""


def note_chars(examples: pl.DataFrame) -> dict[str, str]:
    """Metadata for a shard's footer."""
    return {_CHARS: str(examples.select(PROMPT_CHARS.sum()).item())}


def count_shards(out: Path, retrieve: Path) -> Facts:
    """Facts of the generate stage.

    Args:
        out: folder with the finished ``train|valid|test/shard-NNN.parquet``.
        retrieve: folder of the finished stage.

    Returns:
        Examples by purpose, training queries dropped because no answer was among their candidates, mean characters of a
        prompt; where tokens were counted, their mean and maximum and the films and facts dropped for the budget.
    """
    paths = [path for purpose in PURPOSES.categories for path in shard_files(out / purpose)]
    counts = (
        scan_parquet(paths)
        .select("purpose", "num_tokens", **LEFT_OUT)
        .group_by("purpose")
        .agg(
            pl.col(*LEFT_OUT).sum(),
            examples=pl.len(),
            shortened=(pl.sum_horizontal(*LEFT_OUT) > 0).sum(),
            tokens=pl.col("num_tokens").sum(),
            longest=pl.col("num_tokens").max(),
        )
        .collect(engine="streaming")
    )
    examples = {row["purpose"]: row["examples"] for row in counts.sort("purpose").iter_rows(named=True)}
    total = sum(examples.values())
    chars = sum(int(pl.read_parquet_metadata(path)[_CHARS]) for path in paths)
    longest = counts["longest"].max()
    found: Facts = {}
    if longest is not None:
        found = {
            "mean_tokens": round(counts["tokens"].sum() / total, 1),
            "longest_tokens": longest,
            "shortened": counts["shortened"].sum(),
            **{name: counts[name].sum() for name in LEFT_OUT},
        }
    return {
        "examples": examples,
        "train_without_answer": _count_train(retrieve) - examples.get("train", 0),
        "mean_prompt_chars": round(chars / total, 1) if total else 0.0,
        **found,
    }


def _count_train(retrieve: Path) -> int:
    asked = scan_parquet(shard_files(retrieve / "retrieved"))
    return int(asked.select((pl.col("purpose") == "train").sum()).collect(engine="streaming").item())
