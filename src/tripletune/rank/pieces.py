"""Pieces of the ranking: each is answered by one process at a time and written whole, so that a kill loses one.

A piece is claimed with a lock that dies with its process. The same loop therefore serves one process that answers all
pieces, and several that share them: whoever is free takes the next, and the piece of one that died is taken by another.
How examples are cut into pieces and batches does not depend on the number of processes, so neither do the answers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from filelock import FileLock, Timeout

from tripletune.config import RankConfig
from tripletune.schemas.rank import QUANTIZED
from tripletune.stable_hash import VIEWERS, mix
from tripletune.store.parquet import parquet_files, write_parquet
from tripletune.store.read import scan_parquet
from tripletune.store.shards import shard_files

if TYPE_CHECKING:
    from tripletune.rank.answerer import Answerer

COLUMNS = (
    *("example_id", "user_id", "purpose", "cutoff", "prompt", "candidates", "candidate_titles", "candidate_letters"),
    *("retrieved", "liked", "disliked"),
)
"""Columns of the shards that ranking reads."""
PURPOSES = ("valid", "test")
_USERS = 128
"""Users in a piece, each with all queries: few enough that a few hundred users keep several processes busy, and enough
for batches of equal length."""
_EXAMPLES = 512
"""Examples in a piece that is cut from a folder of prompts."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One way of answering, for one purpose."""

    purpose: str
    tuned: bool
    constrained: bool
    quantization: str = "none"
    """Format of the weights, a key of ``QUANTIZED``; none: that of the contract."""
    scored: bool = False
    """Every candidate gets a score, also where answers are written out; see ``Answerer.score``."""

    @property
    def system(self) -> str:
        """Name of the system that answers."""
        if self.quantization in QUANTIZED:
            return QUANTIZED[self.quantization]
        return "tuned" if self.tuned else "untuned"

    @property
    def name(self) -> str:
        """Of the pass, for files and logs."""
        return f"{self.purpose}-{self.system}-{'constrained' if self.constrained else 'free'}"

    def num_users(self, settings: RankConfig, ranked: int) -> int:
        """How many of the ``ranked`` users this pass answers for: the first of them."""
        limits = [ranked]
        if not self.tuned and settings.untuned_viewers:
            limits.append(settings.untuned_viewers)
        if self.quantization in QUANTIZED and settings.quantized_viewers:
            limits.append(settings.quantized_viewers)
        if not self.constrained:
            limits.append(settings.unconstrained_viewers)
        return min(limits)


_PASSES = (  # one model after the other: only one is in memory
    Pass(purpose="valid", tuned=True, constrained=True),
    Pass(purpose="test", tuned=True, constrained=True),
    Pass(purpose="test", tuned=True, constrained=False),
    Pass(purpose="valid", tuned=False, constrained=True),
    Pass(purpose="test", tuned=False, constrained=True),
    Pass(purpose="test", tuned=False, constrained=False),
)


def passes_of(settings: RankConfig) -> tuple[Pass, ...]:
    """All ways of answering that the settings ask for, one model after the other."""
    rounded = (
        Pass(purpose=purpose, tuned=True, constrained=True, quantization=quantization)
        for quantization in settings.quantized
        for purpose in PURPOSES
    )
    return (*_PASSES, *rounded)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some users' queries under one way of answering."""

    way: Pass
    target: Path
    """File of the answers; a piece whose file exists is done."""
    examples: pl.LazyFrame

    @property
    def is_done(self) -> bool:
        """Whether its answers are written."""
        return self.target.is_file()


@dataclass(frozen=True, slots=True)
class Answered:
    """What answering one piece took."""

    seconds: float
    tokens: int
    """Written by the model."""


def choose_users(shards: Path, settings: RankConfig, seed: int) -> dict[str, pl.DataFrame]:
    """The users to rank by purpose, ``user_id, place``: in the order of a hash, ``place`` counts from 0."""
    return {purpose: _chosen_users(shards, purpose, settings, seed) for purpose in PURPOSES}


def _chosen_users(shards: Path, purpose: str, settings: RankConfig, seed: int) -> pl.DataFrame:
    users = scan_parquet(parquet_files(shards, purpose)).select(pl.col("user_id").unique()).collect()
    hashed = users.with_columns(hashed=pl.Series(mix(users["user_id"].to_numpy(), seed + VIEWERS)))
    ordered = hashed.sort("hashed", "user_id").drop("hashed").with_row_index("place")
    return ordered.head(settings.max_viewers) if settings.max_viewers else ordered


def examples_of(shards: Path, purpose: str, users: pl.DataFrame) -> pl.LazyFrame:
    """The examples of some of ``choose_users``, user by user."""
    rows = scan_parquet(parquet_files(shards, purpose)).select(COLUMNS)
    return rows.join(users.lazy(), on="user_id", how="inner").sort("place", "cutoff")


def cut_pieces(shards: Path, chosen: Mapping[str, pl.DataFrame], settings: RankConfig, folder: Path) -> list[Piece]:
    """Each pass cut into pieces of users.

    Args:
        shards: the generate stage's folder.
        chosen: of ``choose_users``.
        settings: the ``[rank]`` section.
        folder: of the pieces' files.
    """
    pieces = []
    for way in passes_of(settings):
        users = chosen[way.purpose]
        users = users.head(way.num_users(settings, len(users)))
        for number, start in enumerate(range(0, len(users), _USERS)):
            examples = examples_of(shards, way.purpose, users.slice(start, _USERS))
            pieces.append(Piece(way, folder / f"{way.name}-{number:05d}.parquet", examples))
    return pieces


def cut_prompts(files: Path, folder: Path, *, scored: bool = False) -> list[Piece]:
    """All examples of a folder in the order of its files, for the tuned model; no piece has examples of two files.

    Args:
        files: folder of files ``shard-NNN.parquet`` with ``COLUMNS``.
        folder: of the pieces' files, whose names begin with their shard's.
        scored: of the pass.
    """
    way = Pass(purpose="", tuned=True, constrained=True, scored=scored)
    pieces = []
    for shard in shard_files(files):
        rows = scan_parquet(shard).select(COLUMNS)
        for number, start in enumerate(range(0, rows.select(pl.len()).collect().item(), _EXAMPLES)):
            target = folder / f"{shard.stem}-{number:05d}.parquet"
            pieces.append(Piece(way, target, rows.slice(start, _EXAMPLES)))
    return pieces


def answer(answerer: Answerer, examples: pl.DataFrame, way: Pass, batch_size: int) -> pl.DataFrame:
    """The answers of one pass, in the order of ``examples``: columns of ``PREDICTIONS``, and ``num_tokens``."""
    if way.scored:
        answered = answerer.score(examples, batch_size=batch_size)
    else:
        answered = answerer.answer(examples, constrained=way.constrained, batch_size=batch_size)
    return answered.with_columns(
        purpose=examples["purpose"],
        cutoff=examples["cutoff"],
        system=pl.lit(way.system),
        constrained=pl.lit(way.constrained),
    )


def answer_pieces(
    pieces: Sequence[Piece], load: Callable[[Pass], Answerer], batch_size: int, on_piece: Callable[[Answered], None]
) -> None:
    """Answer all pieces, next to other processes that may do the same; on return every piece is done.

    Args:
        pieces: of ``cut_pieces``.
        load: the model of a pass; called when a piece needs that of another system than the last.
        batch_size: prompts answered together.
        on_piece: called after each piece of this process.
    """
    answerer: Answerer | None = None
    loaded = ""
    try:
        while waiting := [piece for piece in pieces if not piece.is_done]:
            took_any = False
            for piece in waiting:
                with _claim(piece) as is_mine:
                    if not is_mine:
                        continue
                    took_any = True
                    if answerer is None or loaded != piece.way.system:
                        if answerer is not None:
                            answerer.close()
                        answerer = None  # its memory is needed
                        answerer, loaded = load(piece.way), piece.way.system
                    on_piece(_answer_piece(answerer, piece, batch_size))
            if not took_any:  # others hold the last ones; wait, in case one of them dies
                time.sleep(_POLL_SECONDS)
    finally:
        if answerer is not None:
            answerer.close()


@contextmanager
def _claim(piece: Piece) -> Iterator[bool]:
    """Whether the piece is still to be answered, and by nobody but this process inside the block."""
    lock = FileLock(piece.target.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield not piece.is_done
    finally:
        lock.release()


def _answer_piece(answerer: Answerer, piece: Piece, batch_size: int) -> Answered:
    started = time.perf_counter()
    answered = answer(answerer, piece.examples.collect(), piece.way, batch_size)
    write_parquet(piece.target, answered)
    return Answered(time.perf_counter() - started, int(answered["num_tokens"].sum()))
