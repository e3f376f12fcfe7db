"""The teach stage: an adapter's scores of the candidates of every training example, for another model to learn from.

The teacher is a finetuned folder, such as that of a large model; it ranks the training prompts by the code that ranks
the held-out ones. Scores are kept by film: the student looks a candidate's up wherever its prompt shows it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.config import RankConfig
from tripletune.contract import AdapterContract, Residual, read_contract, require_same
from tripletune.errors import ContractError
from tripletune.quantization import check_quantization
from tripletune.rank.answering import answer_job
from tripletune.rank.pieces import Piece, cut_prompts
from tripletune.rank.served import add_retriever
from tripletune.rank.workers.job import RankJob
from tripletune.rank.workers.launch import visible_gpus, worker_environments
from tripletune.schemas.base import conform
from tripletune.schemas.rank import PREDICTIONS
from tripletune.schemas.teach import TAUGHT
from tripletune.store.parquet import write_parquet
from tripletune.store.paths import SCRATCH, Facts
from tripletune.store.read import read_parquet
from tripletune.store.shards import shard_files

_READ = ["example_id", "user_id", "cutoff", "answers", "retrieved"]

log = logging.getLogger(__name__)


def require_teacher(teacher: Path, prompt_contract: Mapping[str, Any]) -> AdapterContract:
    """The contract of a teacher's folder.

    Its scores mean something on prompts like those that it was trained on, so it must share all that the prompts have
    in common; base model, objective and number format may differ.

    Args:
        teacher: a finetuned folder.
        prompt_contract: of the student's prompts.

    Raises:
        MissingArtifactError: there is no adapter.
        ContractError: the teacher was trained on other prompts, or reads behaviour tokens.
    """
    contract = read_contract(teacher)
    try:
        require_same(prompt_contract, contract)
    except ContractError as error:
        raise ContractError(f"finetune.teacher = {str(teacher)!r}: {error}; or name another teacher") from None
    if contract.behaviour:
        raise ContractError(
            f"finetune.teacher = {str(teacher)!r} reads behaviour tokens made of the vectors of "
            f"{contract.behaviour.source}, which training prompts are not scored with; name a teacher that reads text "
            "alone"
        )
    return contract


def score_training(
    shards: Path, teacher: Path, out: Path, settings: RankConfig, prompt_contract: Mapping[str, Any]
) -> Facts:
    """Write ``train/shard-NNN.parquet``, rows of ``schemas.teach.TAUGHT``.

    Args:
        shards: the generate stage's folder.
        teacher: a finetuned folder.
        out: work folder; pieces that a killed run finished are kept.
        settings: the ``[rank]`` section: library, batch size and processes.
        prompt_contract: of the shards.

    Returns:
        Facts: teacher (its base model), examples, right_share (of them those where it puts an answer first), seconds
        and tokens a second of this run.

    Raises:
        MissingArtifactError, ContractError: as ``require_teacher``, or the teacher's base model has changed.
        ConfigError: a library is not installed, or ``rank.backend`` can't answer for this adapter.
    """
    contract = require_teacher(teacher, prompt_contract)
    check_quantization(contract.quantization)
    folder = out / SCRATCH / "pieces"
    folder.mkdir(parents=True, exist_ok=True)
    pieces = cut_prompts(shards / "train", folder)
    job = RankJob(
        shards=shards,
        finetuned=teacher,
        pieces=folder,
        merged=out / SCRATCH / "merged",
        settings=settings,
        seed=0,
        prompts=shards / "train",
        folders={},
        environments=worker_environments(settings.workers, visible_gpus()),
    )
    took = answer_job(job, pieces, out / SCRATCH)
    (out / "train").mkdir(exist_ok=True)
    num_examples, right = 0, 0
    for shard in shard_files(shards / "train"):
        examples = read_parquet(shard, columns=_READ)
        taught = _scores_of(examples, pieces, shard, contract.residual)
        write_parquet(out / "train" / shard.name, taught)
        best = taught["films"].list.first()
        num_examples, right = num_examples + len(taught), right + int(examples["answers"].list.contains(best).sum())
    log.info("teach: %s scored %s training examples", contract.base_model, f"{num_examples:,}")
    return {
        "teacher": contract.base_model,
        "examples": num_examples,
        "right_share": round(right / num_examples, 4) if num_examples else None,
        "seconds": round(took.seconds, 3),
        "tokens_per_second": round(took.tokens / took.seconds, 1) if took.seconds else None,
    }


def _scores_of(examples: pl.DataFrame, pieces: Sequence[Piece], shard: Path, residual: Residual | None) -> pl.DataFrame:
    """A shard's rows of ``TAUGHT``: the answers of its pieces, which keep the order of the examples."""
    mine = [piece for piece in pieces if piece.target.name.startswith(f"{shard.stem}-")]
    if not mine:
        return pl.DataFrame(schema=TAUGHT)
    answered = pl.concat(conform(read_parquet(piece.target), PREDICTIONS) for piece in mine)
    if answered["scores"].is_null().any():
        raise ContractError(
            "finetune.teacher gives candidates no scores, as its tokenizer cuts labels into several tokens; name a "
            "teacher whose labels are one token each, or lower retrieve.num_candidates"
        )
    key = ["user_id", "cutoff"]
    asked = examples.select("example_id", *key, "retrieved")
    both = asked.join(answered.select(*key, "answers", "scores"), on=key, validate="1:1", maintain_order="left")
    scored = add_retriever(both.drop("retrieved"), both["retrieved"], residual) if residual else both
    return conform(scored.rename({"answers": "films"}), TAUGHT)
