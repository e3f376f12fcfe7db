"""Warm start: go on from the champion's adapter with the examples that neither it nor an ancestor was trained on.

An example is the same when it asks the same user at the same cutoff for the same answers. Hints do not count: a trained
model that was fitted again words them differently, and the user has still said nothing new.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tripletune.contract import BaseIdentity, read_contract
from tripletune.errors import ConfigError
from tripletune.schemas.base import conform
from tripletune.schemas.finetune import TRAINED_EXAMPLES, TRAINED_EXAMPLES_NAME
from tripletune.store.parquet import read_rows, write_parquet
from tripletune.store.paths import MANIFEST, Facts, read_manifest
from tripletune.store.read import read_parquet, scan_parquet

log = logging.getLogger(__name__)

SAME_AS = "same_as"
"""Fact of an output that is its champion, taken over because there was nothing new: the champion's fingerprint."""
_ANSWERS = pl.col("answers").list.sort()
_KEY = pl.format("{}:{}:{}", "user_id", "cutoff", _ANSWERS.cast(pl.List(pl.String)).list.join(",")).alias("key")


@dataclass(frozen=True, slots=True)
class Champion:
    """The adapter that a training goes on from."""

    folder: Path
    """Of its finetune output."""
    fingerprint: str
    run: str
    """That promoted it."""
    since: int
    """Warm trainings since the last fresh adapter, or since the chain beat one, with the one that is to come."""

    @property
    def adapter(self) -> Path:
        """Folder of its weights."""
        return self.folder / "adapter"

    @property
    def facts(self) -> Facts:
        """Facts of its output; none where its manifest is gone."""
        manifest = read_manifest(self.folder)
        facts: Facts = manifest["facts"] if manifest else {}
        return facts

    @property
    def chain(self) -> list[dict[str, str]]:
        """Fingerprint and run of the champion's ancestors, the fresh one first, and of the champion."""
        return [*self.facts.get("ancestors", []), {"fingerprint": self.fingerprint, "run": self.run}]


def select_new(train: list[Path], champion: Champion | None, folder: Path) -> tuple[list[Path], Facts]:
    """The examples to train on: all, or those that are new to a champion, copied into files of their own.

    Args:
        train: shards of training examples.
        champion: None: all are new.
        folder: receives the files, named as the shards; of a shard without a new example none.

    Returns:
        The files in the order of the shards, and the facts start, ancestors, warm_runs, examples_new, examples_known.
    """
    if champion is None:
        total = scan_parquet(train).select(pl.len()).collect().item()
        return train, {**_started_from(None), "examples_new": total, "examples_known": 0}
    earlier = read_rows(champion.folder / TRAINED_EXAMPLES_NAME, TRAINED_EXAMPLES).select(_KEY).unique()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files, new, known = [], 0, 0
    for shard in train:
        examples = read_parquet(shard, hive_partitioning=False)
        left = examples.with_columns(_KEY).join(earlier, on="key", how="anti", maintain_order="left").drop("key")
        new, known = new + left.height, known + examples.height - left.height
        if left.height:
            write_parquet(folder / shard.name, left.rechunk())
            files.append(folder / shard.name)
    log.info("finetune: %s of %s examples are new to %s", f"{new:,}", f"{new + known:,}", champion.fingerprint[:10])
    return files, {**_started_from(champion), "examples_new": new, "examples_known": known}


def _started_from(champion: Champion | None) -> Facts:
    if champion is None:
        return {"start": "base", "ancestors": [], "warm_runs": 0}
    return {"start": "champion", "ancestors": champion.chain, "warm_runs": champion.since}


def write_trained_examples(out: Path, files: list[Path], champion: Champion | None) -> None:
    """Write ``TRAINED_EXAMPLES``: those of these files, next to the champion's.

    Args:
        out: the stage's work folder.
        files: of ``select_new``.
        champion: None: the adapter is fresh.
    """
    generation = len(champion.chain) if champion else 0
    likes = pl.concat_list(*(pl.col(name).fill_null([]) for name in ("answers", "liked")))
    read = scan_parquet(files, hive_partitioning=False).select(
        "user_id", "cutoff", answers=_ANSWERS, films=likes.list.unique().list.sort(), generation=pl.lit(generation)
    )
    rows = [conform(read.collect(), TRAINED_EXAMPLES)]
    if champion:
        rows.append(read_rows(champion.folder / TRAINED_EXAMPLES_NAME, TRAINED_EXAMPLES))
    whole = pl.concat(rows).sort("user_id", "cutoff", "generation", maintain_order=True)
    write_parquet(out / TRAINED_EXAMPLES_NAME, whole.rechunk())


def reuse_champion(champion: Champion, out: Path) -> Facts:
    """Publish the champion's files as they are: there is nothing to train on.

    Args:
        champion: whose output is linked file by file, or copied where the file system has no links.
        out: the stage's work folder.

    Returns:
        The champion's facts, and ``same_as``. The chain does not grow.
    """
    log.info("finetune: nothing new since the champion %s; its output is reused", champion.fingerprint[:10])
    for source in sorted(path for path in champion.folder.rglob("*") if path.is_file() and path.name != MANIFEST):
        target = out / source.relative_to(champion.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return {**champion.facts, SAME_AS: champion.fingerprint}


def require_same_base(champion: Champion, base: BaseIdentity) -> None:
    """Refuse to put a champion's adapter on another base model than it was trained on.

    Raises:
        ConfigError: weights, config or tokenizer differ.
    """
    contract = read_contract(champion.folder)
    for name, now, then in (
        ("weights or config", base.revision, contract.base_revision),
        ("tokenizer", base.tokenizer_sha256, contract.tokenizer_sha256),
    ):
        if now != then:
            raise ConfigError(
                f"finetune.start = 'champion', but the base model {base.source} has another {name} ({now[:12]}) than "
                f"that of the champion {champion.fingerprint[:10]} ({then[:12]}); restore that model, or set "
                "finetune.start to 'base'"
            )
