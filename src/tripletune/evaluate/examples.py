"""The first test examples, with every system's answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from tripletune.schemas.answers import NUM_ANSWERS
from tripletune.schemas.rank import SYSTEMS
from tripletune.store.parquet import parquet_files, scan
from tripletune.store.read import read_parquet

MAX_EXAMPLES = 3


def first_examples(generate: Path, rank: Path) -> list[dict[str, Any]]:
    """The first test examples, by user, that the tuned model answered: prompt, held-out film, every system's answer."""
    predictions = read_parquet(rank / "predictions.parquet").filter(pl.col("purpose") == "test")
    tuned = predictions.filter(pl.col("system") == "tuned", pl.col("constrained"))
    key = ["user_id", "cutoff"]
    first = tuned.select(key).unique().sort(key).head(MAX_EXAMPLES)
    shown = scan(parquet_files(generate, "test")).join(first.lazy(), on=key, how="semi").sort(key)
    examples = []
    for example in shown.collect().to_dicts():
        titles = dict(zip(example["candidates"], example["candidate_titles"], strict=True))
        answer = example["answers"][0]
        said = predictions.filter(pl.col(name) == example[name] for name in key).with_columns(
            pl.col("system").cast(pl.Enum(SYSTEMS))
        )
        answers = [
            {
                "system": line["system"],
                "constrained": line["constrained"],
                "films": [(titles.get(film, f"film {film}"), film == answer) for film in line["answers"][:NUM_ANSWERS]],
                "text": line["text"],
                "valid": line["valid"],
            }
            for line in said.sort("system", "constrained", descending=[False, True]).to_dicts()
        ]
        held_out = titles.get(answer, f"film {answer}, which retrieval did not find")
        examples.append({**example, "held_out": held_out, "predictions": answers})
    return examples
