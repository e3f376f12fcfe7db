"""Record of audited examples: digests of the audit's inputs, so that a later run checks only new or changed examples.

An entry holds two digests: of the example's whole row, and of all rows of its user in the split. Besides these, the
rules on single examples depend only on

- the films that some user liked in the rows of LightGCN's fits (``rules.liked_films``): a record is used only if every
  specialist is the same as when it was written;
- the titles in the examples of its group of shards (``lines.named_films``), by which a line of a prompt is recognised.
  An example that could be about a title that is new to the group is checked again. A title that is gone does not
  invalidate an entry: whatever the rules refuse without it they also refuse with it;
- the code: the caller makes sure that the record's run had the same.

The writer's own list of changed users is not used. Rules on several examples (an id written twice, stray files) and on
the answers of a pinned fit are not recorded; they cover all examples in every run.

Digests are 64-bit sums and hashes by polars, which are the same in every process of one version of it: the version is
part of the check whether an earlier run is usable. They protect against mistakes, not against an attacker who may write
into the store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from tripletune.audit.rules import listed_films
from tripletune.audit.split_rows import digest
from tripletune.audit.text import NAMING
from tripletune.errors import InputError
from tripletune.schemas.generate import EXAMPLES, PROVEN
from tripletune.schemas.hints import TRIPLE_HINTS
from tripletune.store.fingerprint import sha256_file
from tripletune.store.parquet import read_rows, write_parquet
from tripletune.store.paths import read_manifest

RECORD = "audit/proven.parquet"
"""Path in generate's folder."""
MOST_TITLES = 100
"""Maximum of new titles that the prompts of a group are searched for; with more, all its examples are checked again."""
_KEYS = ("example_id", "example", "viewer")


def take_notes(group: str, examples: pl.DataFrame, viewers: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """``PROVEN`` of every example of a group, in its order; valid once no leak is found.

    Args:
        group: path of its first shard below generate's folder.
        examples: EXAMPLES.
        viewers: ``SplitRows.digests``.
        titles: ``lines.named_films`` of the group.
    """
    known = titles["said"].drop_nulls()
    notes = examples.select(
        "user_id",
        "example_id",
        group=pl.lit(group),
        example=digest(*EXAMPLES),
        clear=pl.col("candidates").list.eval(pl.element().is_in(known.implode())).list.all().fill_null(value=False),
    )
    few = viewers.join(notes, on="user_id", how="semi")  # a lookup among few rows is several times as fast
    return notes.join(few, on="user_id", how="left", maintain_order="left").select(list(PROVEN))


def unproven(examples: pl.DataFrame, notes: pl.DataFrame, earlier: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """Examples of a group that an earlier run's record does not cover, in their order; EXAMPLES.

    Args:
        examples: EXAMPLES.
        notes: ``take_notes`` of them.
        earlier: ``PROVEN`` of the group of this name in an earlier run, without a leak.
        titles: ``lines.named_films`` of the group.
    """
    if earlier.is_empty():
        return examples
    before = earlier.select(*_KEYS, was_clear="clear")
    proven = notes.with_row_index("row").join(before, on=_KEYS, how="inner")
    known_then = examples["candidates"].gather(proven.filter("was_clear")["row"]).explode()
    new = titles.filter(pl.col("said").is_not_null(), ~pl.col("said").is_in(known_then.unique().implode()))
    if new.height > MOST_TITLES:
        return examples
    is_left = ~pl.int_range(examples.height, dtype=pl.UInt32).is_in(proven["row"].implode())
    return examples.filter(is_left | _could_be_about(new) if new.height else is_left)


def _could_be_about(titles: pl.DataFrame) -> pl.Expr:
    """Whether an example lists one of these films, or names one of these titles anywhere in its prompt."""
    films = titles["said"].implode()
    lists = [*(pl.col(name) for name in NAMING), *(listed_films(hint) for hint in TRIPLE_HINTS)]
    listed = [films_of.list.eval(pl.element().is_in(films)).list.any() for films_of in lists]
    pattern = "|".join(pl.escape_regex(title) for title in titles["title"])
    named = pl.col("prompt").list.eval(pl.element().struct.field("content").str.contains(pattern)).list.any()
    return pl.any_horizontal(*listed, named).fill_null(value=True)


def read_record(earlier: Path | None, trained: Mapping[str, Path]) -> pl.DataFrame:
    """Record of an earlier run; ``PROVEN``, empty if there is none or it does not apply to this run.

    Args:
        earlier: finished generate folder of the earlier run, made by the same code and settings.
        trained: this run's folders of the training stages, by stage.
    """
    manifest = read_manifest(earlier) if earlier else None
    if earlier is None or manifest is None:
        return PROVEN.to_frame()
    fitted = {name: manifest["parents"].get(name) for name in trained}
    stated = manifest["files"].get(RECORD, {}).get("sha256")
    try:
        if fitted != {name: folder.name for name, folder in trained.items()} or stated != sha256_file(earlier / RECORD):
            return PROVEN.to_frame()
        return read_rows(earlier / RECORD, PROVEN)
    except (OSError, InputError):
        return PROVEN.to_frame()


def write_record(shards: Path, proven: pl.DataFrame) -> None:
    """Write ``RECORD`` into generate's work folder; its bytes do not depend on how many examples were skipped.

    Args:
        proven: ``PROVEN`` of shards without a leak.
    """
    path = shards / RECORD
    path.parent.mkdir(exist_ok=True)
    write_parquet(path, proven.rechunk())
