"""The rank stage: every system's answers for every query of every user, in one table.

Systems: ``random`` and ``retriever`` order the candidates without a language model; ``untuned`` is the base model and
``tuned`` the same with the adapter; ``tuned+retriever`` adds the retriever's scores to its own. Answers are written in
pieces that survive a kill, since a large model takes hours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.progress import track

from tripletune.config import RankConfig
from tripletune.contract import Residual, read_contract, require_same
from tripletune.rank.served import add_retriever
from tripletune.schemas.base import conform
from tripletune.schemas.rank import PREDICTIONS, SERVED
from tripletune.stable_hash import VIEWERS, mix, pair_hash_expr
from tripletune.store.parquet import parquet_files, write_parquet
from tripletune.store.paths import SCRATCH, Facts

if TYPE_CHECKING:
    from tripletune.rank.answerer import Answerer

FolderOf = Callable[[str], Path]
"""The folder of one of a run's stages, by the stage's name."""
_COLUMNS = (
    *("example_id", "user_id", "purpose", "cutoff", "prompt", "candidates", "candidate_titles", "candidate_letters"),
    *("retrieved", "liked", "disliked"),
)
_PIECE = 512
"""Users in a piece, each with all queries: a kill loses at most one piece."""
_RANDOM = 5 << 40
"""Added to the seed for the random system, so that it has nothing in common with any other order of the candidates."""
_ROW_GROUP = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """One way of answering, for one purpose."""

    purpose: str
    tuned: bool
    constrained: bool

    @property
    def system(self) -> str:
        return "tuned" if self.tuned else "untuned"

    @property
    def name(self) -> str:
        return f"{self.purpose}-{self.system}-{'constrained' if self.constrained else 'free'}"


_PASSES = (  # one model after the other: only one is in memory
    _Pass(purpose="valid", tuned=True, constrained=True),
    _Pass(purpose="test", tuned=True, constrained=True),
    _Pass(purpose="test", tuned=True, constrained=False),
    _Pass(purpose="valid", tuned=False, constrained=True),
    _Pass(purpose="test", tuned=False, constrained=True),
    _Pass(purpose="test", tuned=False, constrained=False),
)


def rank_examples(
    examples: pl.DataFrame,
    finetuned: Path,
    *,
    tuned: bool,
    constrained: bool,
    batch_size: int,
    folder_of: FolderOf | None = None,
) -> pl.DataFrame:
    """Answer prompts with a finetuned folder's model.

    Args:
        examples: ``user_id``, ``purpose``, ``cutoff``, ``prompt``, ``candidates``, ``candidate_titles``,
            ``candidate_letters`` as in the shards, for behaviour tokens ``example_id``, ``liked`` and ``disliked`` too.
            The caller has compared their contract with the adapter's (``contract.require_same``).
        finetuned: folder with ``adapter/``, ``contract.json``, and ``base/`` or the base model the contract names.
        tuned: with the adapter, or the base model alone.
        constrained: allow only five distinct candidates.
        batch_size: prompts answered together.
        folder_of: as for ``rank_shards``.

    Returns:
        Rows of ``schemas.PREDICTIONS`` in the order of ``examples``; of the tuned model those that are served: with the
        retriever's scores, if its contract says how. ``retrieved`` is needed then.

    Raises:
        MissingArtifactError, ContractError: no adapter there, or its base model has changed.
    """
    from tripletune.rank.answerer import Answerer  # imports torch and transformers

    way = _Pass(purpose="", tuned=tuned, constrained=constrained)
    answerer = Answerer.load(finetuned, folder_of, tuned=tuned)
    answered = _answer(answerer, examples, way, batch_size)
    residual = answerer.contract.residual
    if residual and tuned and constrained:
        answered = add_retriever(answered, examples["retrieved"], residual).with_columns(system=pl.lit(SERVED))
    return conform(answered, PREDICTIONS)


def rank_shards(
    shards: Path,
    finetuned: Path,
    out: Path,
    settings: RankConfig,
    prompt_contract: Mapping[str, Any],
    seed: int,
    *,
    folder_of: FolderOf | None = None,
) -> Facts:
    """Write ``predictions.parquet``: all systems, for valid and test.

    ``constrained`` is true for ``random`` and ``retriever`` too: their answers are valid by construction.

    Args:
        shards: the generate stage's folder.
        finetuned: the finetune stage's folder.
        out: work folder; pieces that a killed run finished are kept.
        settings: the ``[rank]`` section.
        prompt_contract: of the shards; compared with the adapter's before anything is loaded.
        seed: of the random system and of the choice of users.
        folder_of: the run's folder of a stage; needed where the adapter reads film vectors.

    Returns:
        Facts: users by purpose, rows, share of valid answers by pass, seconds and tokens a second of this run.

    Raises:
        ContractError: the adapter was trained on other prompts.
    """
    contract = read_contract(finetuned)
    require_same(prompt_contract, contract)
    pieces = out / SCRATCH / "pieces"
    pieces.mkdir(parents=True, exist_ok=True)
    chosen = {purpose: _chosen_users(shards, purpose, settings, seed) for purpose in ("valid", "test")}
    work = list(_pieces(shards, chosen, settings, pieces))
    answerer: Answerer | None = None
    seconds, tokens = 0.0, 0
    for way, target, examples in track(work, description="rank", transient=True):
        if target.is_file():
            continue
        if answerer is None or answerer.tuned != way.tuned:
            from tripletune.rank.answerer import Answerer  # imports torch and transformers

            answerer = None  # its memory is needed
            answerer = Answerer.load(finetuned, folder_of, tuned=way.tuned)
        started = time.perf_counter()
        answered = _answer(answerer, examples.collect(), way, settings.batch_size)
        seconds += time.perf_counter() - started
        tokens += int(answered["num_tokens"].sum())
        write_parquet(target, answered)
    written = pl.concat(conform(pl.read_parquet(target), PREDICTIONS) for _, target, _ in work)
    parts = [*_trivial_orders(shards, chosen, seed), written]
    if contract.residual:
        parts += [_served(shards, purpose, users, written, contract.residual) for purpose, users in chosen.items()]
    predictions = pl.concat(parts).sort("purpose", "user_id", "cutoff", "system", "constrained")
    write_parquet(out / "predictions.parquet", predictions, row_group_size=_ROW_GROUP)
    return {
        "rows": len(predictions),
        "viewers": {purpose: len(viewers) for purpose, viewers in chosen.items()},
        "valid_share": _valid_shares(predictions),
        "seconds": round(seconds, 3),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
    }


def _chosen_users(shards: Path, purpose: str, settings: RankConfig, seed: int) -> pl.DataFrame:
    """``user_id, place``: the users to rank, in the order of a hash; ``place`` counts from 0."""
    users = pl.scan_parquet(parquet_files(shards, purpose)).select(pl.col("user_id").unique()).collect()
    hashed = users.with_columns(hashed=pl.Series(mix(users["user_id"].to_numpy(), seed + VIEWERS)))
    ordered = hashed.sort("hashed", "user_id").drop("hashed").with_row_index("place")
    return ordered.head(settings.max_viewers) if settings.max_viewers else ordered


def _pieces(
    shards: Path, chosen: Mapping[str, pl.DataFrame], settings: RankConfig, folder: Path
) -> Iterator[tuple[_Pass, Path, pl.LazyFrame]]:
    """Each pass cut into pieces of users: the way of answering, the piece's file, its examples."""
    for way in _PASSES:
        viewers = chosen[way.purpose]
        if not way.constrained:
            viewers = viewers.head(settings.unconstrained_viewers)
        for number, start in enumerate(range(0, len(viewers), _PIECE)):
            examples = _examples(shards, way.purpose, viewers.slice(start, _PIECE))
            yield way, folder / f"{way.name}-{number:05d}.parquet", examples


def _examples(shards: Path, purpose: str, viewers: pl.DataFrame) -> pl.LazyFrame:
    rows = pl.scan_parquet(parquet_files(shards, purpose)).select(_COLUMNS)
    return rows.join(viewers.lazy(), on="user_id", how="inner").sort("place", "cutoff")


def _answer(answerer: Answerer, examples: pl.DataFrame, way: _Pass, batch_size: int) -> pl.DataFrame:
    answered = answerer.answer(examples, constrained=way.constrained, batch_size=batch_size)
    return answered.with_columns(
        purpose=examples["purpose"],
        cutoff=examples["cutoff"],
        system=pl.lit(way.system),
        constrained=pl.lit(way.constrained),
    )


def _served(
    shards: Path, purpose: str, viewers: pl.DataFrame, answered: pl.DataFrame, residual: Residual
) -> pl.DataFrame:
    """Rows of the system ``SERVED``."""
    retrieved = _examples(shards, purpose, viewers).select("user_id", "cutoff", "retrieved").collect()
    tuned = answered.filter(pl.col("purpose") == purpose, pl.col("system") == "tuned", pl.col("constrained"))
    both = tuned.join(retrieved, on=["user_id", "cutoff"], how="left", validate="1:1", maintain_order="left")
    served = add_retriever(tuned, both["retrieved"], residual)
    return served.with_columns(system=pl.lit(SERVED), text=pl.lit(""))


def _trivial_orders(shards: Path, chosen: Mapping[str, pl.DataFrame], seed: int) -> list[pl.DataFrame]:
    """Rows of the systems ``random`` and ``retriever``."""
    wanted = [_examples(shards, purpose, viewers) for purpose, viewers in chosen.items()]
    key = ("purpose", "user_id", "cutoff")
    examples = pl.concat(wanted).select(*key, "candidates", "retrieved").collect()
    shuffled = (
        examples.lazy()
        .select(*key, "candidates")
        .explode("candidates", empty_as_null=False)
        .with_columns(hashed=pair_hash_expr("user_id", "candidates", seed + _RANDOM))
        .sort(*key, "hashed", "candidates")
        .group_by(key, maintain_order=True)
        .agg(answers="candidates")
        .collect()
    )
    orders = {
        "random": examples.join(shuffled, on=key, how="left"),
        "retriever": examples.with_columns(answers="retrieved"),
    }
    return [
        conform(
            frame.with_columns(
                system=pl.lit(system),
                constrained=True,
                valid=True,
                text=pl.lit(""),
                scores=pl.lit(None, PREDICTIONS["scores"]),
            ),
            PREDICTIONS,
        )
        for system, frame in orders.items()
    ]


def _valid_shares(predictions: pl.DataFrame) -> dict[str, float]:
    """Share of valid answers of the language model's passes, such as ``test-tuned-free``."""
    shares = (
        predictions.filter(pl.col("system").is_in(["tuned", "untuned"]))
        .group_by("purpose", "system", "constrained")
        .agg(pl.col("valid").mean())
        .sort("purpose", "system", "constrained")
    )
    return {
        _Pass(purpose=purpose, tuned=system == "tuned", constrained=constrained).name: round(valid, 6)
        for purpose, system, constrained, valid in shares.iter_rows()
    }
