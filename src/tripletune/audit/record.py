"""What the audit has proven, noted by digests of what it read, so that a later night proves only what is new.

A note holds two digests of an example: of its whole row, and of all rows of its viewer in the split. The rules that
look at one example at a time read nothing else but

- the films that somebody liked in the rows of LightGCN's fits (``audit_rules.liked_films``): a record counts only where
  every specialist is the very one it was written with;
- the titles that the examples of its group of shards know (``audit_lines.named_films``), by which a line of its prompt
  is recognised. An example that a title could be about which was not known then is proven anew. Titles that are no
  longer known take nothing from a proof: whatever the rules refuse without them they refuse with them;
- the code: what calls this sees to it that the record's night had the same.

What the shards' writer says about who changed plays no part. Rules on several examples (an id written twice, stray
files) and on the answers of a pinned fit are not noted; they look at all every night.

Digests are sums and hashes of 64 bits by polars, which are the same in every process of one version of it: the version
is part of what makes an earlier night usable. They keep out mistakes, not an attacker who may write into the store.
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
"""In generate's folder."""
MOST_TITLES = 100
"""New titles of a group that its prompts are searched for; with more, all of them are proven anew."""
_KEYS = ("example_id", "example", "viewer")


def take_notes(group: str, examples: pl.DataFrame, viewers: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """``schemas.PROVEN`` of every example of a group, in its order; true once there is no leak in it.

    Args:
        group: the name of its first shard below generate's folder.
        examples: EXAMPLES.
        viewers: ``SplitRows.digests``.
        titles: ``audit_lines.named_films`` of the group.
    """
    known = titles["said"].drop_nulls()
    notes = examples.select(
        "user_id",
        "example_id",
        group=pl.lit(group),
        example=digest(*EXAMPLES),
        clear=pl.col("candidates").list.eval(pl.element().is_in(known.implode())).list.all().fill_null(value=False),
    )
    few = viewers.join(notes, on="user_id", how="semi")  # looked up among few rows: several times as fast
    return notes.join(few, on="user_id", how="left", maintain_order="left").select(list(PROVEN))


def unproven(examples: pl.DataFrame, notes: pl.DataFrame, earlier: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """The examples of a group that an earlier night has not proven, in their order; EXAMPLES.

    Args:
        examples: EXAMPLES.
        notes: ``take_notes`` of them.
        earlier: ``schemas.PROVEN`` of the group of this name of an earlier night, without a leak.
        titles: ``audit_lines.named_films`` of the group.
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
    """What an earlier night has proven that holds tonight; ``schemas.PROVEN``, without rows where there is nothing.

    Args:
        earlier: its finished generate folder, made by the same code and settings.
        trained: tonight's folders of the stages that learn from likes, by stage.
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
    """Leave ``RECORD`` in generate's work folder; the same bytes whichever part of it was proven tonight.

    Args:
        proven: ``schemas.PROVEN`` of shards without a leak.
    """
    path = shards / RECORD
    path.parent.mkdir(exist_ok=True)
    write_parquet(path, proven.rechunk())
