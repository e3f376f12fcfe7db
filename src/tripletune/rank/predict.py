"""The rank stage: every system's answers for every query of every user, in one table.

Systems: ``random`` and ``retriever`` order the candidates without a language model; ``untuned`` is the base model and
``tuned`` the same with the adapter, and ``tuned-int8`` that one with rounded weights (``rank.quantized``);
``tuned+retriever`` adds the retriever's scores to its own. With an ensemble, ``tuned`` and ``untuned`` are the order
by all forms of a query's prompt, and ``tuned-listwise``, ``-pointwise`` and ``-pairwise`` one form's. Answers are
written in pieces that survive a kill, since a large model takes hours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tripletune.config import RankConfig
from tripletune.contract import AdapterContract, Residual, read_contract, require_same
from tripletune.quantization import require_bitsandbytes
from tripletune.rank.answering import answer_job
from tripletune.rank.pieces import PURPOSES, Pass, answer, choose_users, cut_pieces, examples_of
from tripletune.rank.served import add_retriever
from tripletune.rank.workers.job import RankJob
from tripletune.rank.workers.launch import visible_gpus, worker_environments
from tripletune.schemas.base import conform
from tripletune.schemas.rank import ALONE, PREDICTIONS, SERVED
from tripletune.stable_hash import pair_hash_expr
from tripletune.store.parquet import write_parquet
from tripletune.store.paths import SCRATCH, Facts
from tripletune.store.read import read_parquet

if TYPE_CHECKING:
    from tripletune.rank.answerer import Answerer

FolderOf = Callable[[str], Path]
"""The folder of one of a run's stages, by the stage's name."""
_RANDOM = 5 << 40
"""Added to the seed for the random system, so that it has nothing in common with any other order of the candidates."""
_ROW_GROUP = 8192
_ASKED_IN_ALL_FORMS = tuple(Pass(purpose=purpose, tuned=True, constrained=True) for purpose in PURPOSES)


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

    answerer = Answerer.load(finetuned, folder_of, tuned=tuned)
    return answer_examples(examples, answerer, constrained=constrained, batch_size=batch_size)


def answer_examples(examples: pl.DataFrame, answerer: Answerer, *, constrained: bool, batch_size: int) -> pl.DataFrame:
    """As ``rank_examples``, with a model that is loaded already."""
    way = Pass(purpose="", tuned=answerer.tuned, constrained=constrained)
    answered = answer(answerer, examples, way, batch_size)
    residual = answerer.contract.residual
    if residual and answerer.tuned and constrained:
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
        ConfigError: ``rank.backend`` can't answer them, see ``vllm_backend.require_answerable``, or ``rank.quantized``
            needs a library that is not installed.
    """
    contract = read_contract(finetuned)
    require_same(prompt_contract, contract)
    if settings.quantized:
        require_bitsandbytes(f"rank.quantized = {list(settings.quantized)}", "set it to []")
    chosen = choose_users(shards, settings, seed)
    folder = out / SCRATCH / "pieces"
    folder.mkdir(parents=True, exist_ok=True)
    pieces = cut_pieces(shards, chosen, settings, folder)
    job = RankJob(
        shards=shards,
        finetuned=finetuned,
        pieces=folder,
        merged=out / SCRATCH / "merged",
        settings=settings,
        seed=seed,
        folders=_film_folders(contract, folder_of),
        environments=worker_environments(settings.workers, visible_gpus()),
    )
    took = answer_job(job, pieces, out / SCRATCH)
    written = pl.concat(conform(read_parquet(piece.target), PREDICTIONS) for piece in pieces)
    parts = [*_trivial_orders(shards, chosen, seed), written]
    if contract.ensemble:
        answered = [read_parquet(piece.target) for piece in pieces if piece.way in _ASKED_IN_ALL_FORMS]
        parts.append(_alone(shards, chosen, answered))
    if contract.residual:
        parts += [_served(shards, purpose, users, written, contract.residual) for purpose, users in chosen.items()]
    predictions = pl.concat(parts).sort("purpose", "user_id", "cutoff", "system", "constrained")
    write_parquet(out / "predictions.parquet", predictions, row_group_size=_ROW_GROUP)
    return {
        "rows": len(predictions),
        "viewers": {purpose: len(users) for purpose, users in chosen.items()},
        "valid_share": _valid_shares(predictions),
        "workers": len(job.environments),
        "seconds": round(took.seconds, 3),
        "tokens": took.tokens,
        "tokens_per_second": round(took.tokens / took.seconds, 1) if took.seconds else None,
    }


def _film_folders(contract: AdapterContract, folder_of: FolderOf | None) -> dict[str, Path]:
    """Folder of the stage whose film vectors the adapter reads, if it reads any."""
    if contract.behaviour is None or folder_of is None:
        return {}
    return {contract.behaviour.source: folder_of(contract.behaviour.source)}


def _served(
    shards: Path, purpose: str, viewers: pl.DataFrame, answered: pl.DataFrame, residual: Residual
) -> pl.DataFrame:
    """Rows of the system ``SERVED``."""
    retrieved = examples_of(shards, purpose, viewers).select("user_id", "cutoff", "retrieved").collect()
    tuned = answered.filter(pl.col("purpose") == purpose, pl.col("system") == "tuned", pl.col("constrained"))
    both = tuned.join(retrieved, on=["user_id", "cutoff"], how="left", validate="1:1", maintain_order="left")
    served = add_retriever(tuned, both["retrieved"], residual)
    return served.with_columns(system=pl.lit(SERVED), text=pl.lit(""))


def _alone(shards: Path, chosen: Mapping[str, pl.DataFrame], answered: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Rows of the systems ``ALONE``: one form's order each; of equal utilities the retriever's better one is first."""
    key = ("purpose", "user_id", "cutoff")
    wanted = [examples_of(shards, purpose, viewers) for purpose, viewers in chosen.items()]
    retrieved = pl.concat(wanted).select(*key, answers="retrieved").collect()
    places = retrieved.with_columns(place=pl.int_ranges(pl.col("answers").list.len())).explode(
        "answers", "place", empty_as_null=False
    )
    films = (
        pl.concat(answered, how="vertical_relaxed")
        .select(*key, "answers", "utilities")
        .explode("answers", "utilities", empty_as_null=False)
        .unnest("utilities")
        .join(places, on=[*key, "answers"], how="left", validate="1:1")
        .unpivot(list(ALONE), index=[*key, "answers", "place"], variable_name="form", value_name="scores")
        .drop_nulls("scores")  # of a form that the adapter is not asked in
        .sort(*key, "form", "scores", "place", descending=[False] * 4 + [True, False])
    )
    ordered = films.group_by(*key, "form", maintain_order=True).agg("answers", "scores")
    rows = ordered.with_columns(
        system=pl.col("form").replace_strict(ALONE), constrained=True, valid=True, text=pl.lit("")
    )
    return conform(rows, PREDICTIONS)


def _trivial_orders(shards: Path, chosen: Mapping[str, pl.DataFrame], seed: int) -> list[pl.DataFrame]:
    """Rows of the systems ``random`` and ``retriever``."""
    wanted = [examples_of(shards, purpose, viewers) for purpose, viewers in chosen.items()]
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
        Pass(purpose=purpose, tuned=system == "tuned", constrained=constrained).name: round(valid, 6)
        for purpose, system, constrained, valid in shares.iter_rows()
    }
