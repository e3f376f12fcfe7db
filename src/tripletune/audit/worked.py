"""Audit rules on worked examples: they are training examples that break no rule, and all prompts show just these.

Every other rule on the text reads the prompts without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.audit.lines import MARK
from tripletune.audit.rules import Finding
from tripletune.errors import InputError
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.worked import WORKED_ROWS, WORKED_TEXT
from tripletune.store.parquet import read_rows

_IDS = pl.List(pl.String)


@dataclass(frozen=True, slots=True)
class Worked:
    """The worked examples of a run as its files have them."""

    rows: pl.DataFrame
    """EXAMPLES, in the order shown."""
    text: str
    """What every prompt shows."""


NO_WORKED = Worked(EXAMPLES.to_frame(), "")


def read_worked(shards: Path) -> Worked:
    """Read them from generate's folder or work folder; empty where it has none.

    Raises:
        InputError: one of the two files is missing or cannot be read.
    """
    rows, text = shards / WORKED_ROWS, shards / WORKED_TEXT
    if not rows.exists() and not text.exists():
        return NO_WORKED
    try:
        return Worked(read_rows(rows, EXAMPLES), text.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text}: {error}; run generate again") from None


def worked_findings(worked: Worked) -> Iterator[Finding]:
    """Rule 3: the text has the rows' prompts and completions, one after the other, and no further line of data."""
    place, between = 0, set()
    bad: list[tuple[str, str]] = []
    for row in worked.rows.iter_rows(named=True):
        user = "\n".join(one["content"] for one in row["prompt"] if one["role"] == "user")
        answer = "\n".join(one["content"] for one in row["completion"])
        end = worked.text.find(f"\n{answer}\n", place + len(user))
        end = end if end >= 0 else worked.text.find(f"\n{answer}", place + len(user))
        if not worked.text.startswith(user, place) or end < 0:
            bad.append((row["example_id"], "its prompt and its answer do not stand in the text"))
            break
        between.add(worked.text[place + len(user) : end])
        place = end + len(answer) + 1
        place += 2 * worked.text.startswith("\n\n", place)
    one_line = pl.Series(sorted(between)).str.contains(f"(?m){MARK}").any() or len(between) > 1
    if not bad and (place != len(worked.text) or one_line):
        bad.append((worked.rows["example_id"][-1], "the text has more than the examples"))
    rows = pl.DataFrame(bad, schema={"example_id": pl.String, "detail": pl.String}, orient="row")
    yield Finding(3, "worked examples say what their rows do not", rows)


def stated_findings(examples: pl.DataFrame, worked: Worked, purpose: str) -> Iterator[Finding]:
    """Rules on the examples of one purpose that show them.

    Args:
        examples: EXAMPLES of this purpose.
        worked: of the run.
        purpose: train, valid or test.
    """
    ids = pl.lit(worked.rows["example_id"].to_list(), dtype=_IDS)
    stated = pl.col("worked").fill_null(pl.lit([], dtype=_IDS))
    other = examples.filter(stated != ids).select("example_id", detail=pl.lit("worked"))
    yield Finding(0, "other worked examples are stated", other)
    if not worked.text:
        return
    user = pl.col("prompt").list.eval(pl.element().struct.field("content")).list.join("\n")
    absent = examples.filter(user.str.count_matches(worked.text, literal=True) != 1)
    yield Finding(
        3, "prompt does not show the worked examples once", absent.select("example_id", detail=pl.lit("text"))
    )
    if purpose == "train":
        own = examples.filter(pl.col("user_id").is_in(worked.rows["user_id"].implode()))
        detail = pl.format("user {}", "user_id")
        yield Finding(3, "own answer stands among the worked examples", own.select("example_id", detail=detail))


def without_worked(prompt: pl.Expr, worked: Worked) -> pl.Expr:
    """Prompts without the worked examples."""
    return prompt.str.replace(worked.text, "", literal=True) if worked.text else prompt
