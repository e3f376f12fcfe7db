"""Recommendations to many users at once, into one Parquet file.

Bucket by bucket of the split, prompts are written as shards, and the rank stage's pieces answer them, in one process or
several. Both survive a kill. How users are cut into buckets, pieces and batches does not depend on the number of
processes, so neither do the file's bytes. In memory are one bucket, the retriever and the language model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from tripletune.config import RunConfig
from tripletune.contract import AdapterContract, read_contract
from tripletune.errors import InputError
from tripletune.progress import Progress
from tripletune.rank.answering import answer_job
from tripletune.rank.pieces import Piece, cut_prompts
from tripletune.rank.served import add_retriever
from tripletune.rank.workers.job import RankJob
from tripletune.rank.workers.launch import visible_gpus, worker_environments
from tripletune.schemas.answers import NUM_ANSWERS
from tripletune.schemas.base import conform
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.rank import PREDICTIONS
from tripletune.serve.prompting import TODAY, Prompter, queries_of_today, rows_of
from tripletune.serve.run_prompts import RunPrompts
from tripletune.store.files import make_folder, write_atomically, write_json
from tripletune.store.fingerprint import sha256_json
from tripletune.store.parquet import write_parquet
from tripletune.store.paths import SCRATCH, RunPaths
from tripletune.store.read import read_parquet, scan_parquet
from tripletune.store.shards import shard_name, split_files

RECOMMENDED = pa.schema(
    {
        "user_id": pa.int32(),
        "place": pa.int32(),
        "movie_id": pa.int32(),
        "title": pa.string(),
        "score": pa.float32(),
        "reason": pa.string(),
    }
)
"""One line for a user and place, from 1; ``score`` is null where the model writes titles, ``reason`` where no fact of
the film is known. Users by bucket of the split, then by id."""
JOB = "job.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What is recommended to whom, by whom."""

    paths: RunPaths
    """Of the run whose trained models retrieve."""
    config: RunConfig
    """Its settings."""
    adapter: Path
    """Finetuned folder that answers."""
    answered_by: Mapping[str, str]
    """Model, version and runs; for the file's footer."""
    tokenizer: tuple[str, str] | None
    """That counts the prompts' tokens."""
    users: pl.Series | None = None
    """Ids; None: all users of the split."""

    def job(self) -> dict[str, Any]:
        """What a killed try must have in common with this one for its pieces to be used."""
        stages = RunPrompts(self.paths, self.config).stages
        settings = self.config.model_dump(mode="json", include={"seed", "split", "retrieve", "prompt", "rank"})
        del settings["rank"]["workers"]  # any number gives the same bytes
        users = None if self.users is None else hashlib.sha256(self.users.sort().to_numpy().tobytes()).hexdigest()
        return {
            "answered_by": dict(self.answered_by),
            "fingerprints": {stage: self.paths.fingerprints[stage] for stage in stages},
            "settings": sha256_json(settings),
            "users": users,
        }


def recommend_all(batch: Batch, out: Path) -> int:
    """Write the recommendations of a batch; returns the number of users.

    Args:
        batch: to whom, and who answers.
        out: the Parquet file, rows of ``RECOMMENDED``; it appears when it is whole. Until then what is done lies in a
            folder next to it, from which the next try goes on.

    Raises:
        InputError: the file cannot be written there, another process writes it now, or a user has no ratings.
        UserError: as ``Prompter.load`` and ``Answerer.load``.
    """
    make_folder(out.parent, "--out")
    work = out.with_name(f".{out.name}.work")
    try:
        with FileLock(out.with_name(f".{out.name}.lock"), timeout=0):
            _open(work, batch.job())
            files = split_files(batch.paths.require("split"))
            if batch.users is not None:
                _require_known(batch.users, files)
            _write_prompts(batch, files, work)
            pieces, contract = _answer(batch, work)
            count = _write_file(batch, pieces, contract, work, out)
            shutil.rmtree(work)
    except Timeout:
        raise InputError(f"another process writes {out} now; wait for it, or name another file with --out") from None
    return count


def _open(work: Path, job: Mapping[str, Any]) -> None:
    """Keep what an earlier try with the same job has done, and nothing else."""
    note = work / JOB
    if work.exists() and (not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != job):
        log.info("recommend: %s is of another model, run or list of users; started over", work)
        shutil.rmtree(work)
    (work / TODAY).mkdir(parents=True, exist_ok=True)
    (work / SCRATCH / "pieces").mkdir(parents=True, exist_ok=True)
    write_json(note, job)


def _require_known(users: pl.Series, files: Mapping[str, Path]) -> None:
    there = scan_parquet(list(files.values()), hive_partitioning=False).select(pl.col("user_id").unique()).collect()
    unknown = users.filter(~users.is_in(there["user_id"].implode()))
    if len(unknown):
        low, high = there.select(low=pl.col("user_id").min(), high=pl.col("user_id").max()).row(0)
        raise InputError(
            f"--users: user {unknown[0]} has no ratings in this run, and {len(unknown) - 1} more; ids there are "
            f"{low} to {high}"
        )


def _write_prompts(batch: Batch, files: Mapping[str, Path], work: Path) -> None:
    """The prompts of each bucket that has none yet, as a shard."""
    missing = {number: path for number, path in files.items() if not (work / TODAY / shard_name(number)).is_file()}
    if not missing:
        return
    prompter = Prompter.load(batch.paths, batch.config, batch.tokenizer)
    with Progress("prompts", len(files), done=len(files) - len(missing), unit="buckets") as progress:
        for number, path in missing.items():
            rows = rows_of([path], batch.users)
            examples = prompter.prompts(rows, queries_of_today(rows)) if rows.height else EXAMPLES.to_frame()
            write_parquet(work / TODAY / shard_name(number), examples.rechunk())
            progress.advance()


def _answer(batch: Batch, work: Path) -> tuple[list[Piece], AdapterContract]:
    """The pieces, all answered."""
    contract = read_contract(batch.adapter)
    folder = work / SCRATCH / "pieces"
    pieces = cut_prompts(work / TODAY, folder)
    source = contract.behaviour.source if contract.behaviour else ""
    settings = batch.config.rank
    job = RankJob(
        shards=work,
        finetuned=batch.adapter,
        pieces=folder,
        merged=work / SCRATCH / "merged",
        settings=settings,
        seed=batch.config.seed,
        prompts=work / TODAY,
        folders={source: batch.paths.require(source)} if source else {},
        environments=worker_environments(settings.workers, visible_gpus()),
    )
    answer_job(job, pieces, work / SCRATCH)
    return pieces, contract


def _write_file(batch: Batch, pieces: list[Piece], contract: AdapterContract, work: Path, out: Path) -> int:
    """All pieces as one file, a row group for each; returns the number of users."""
    note = {f"tripletune.{name}": value for name, value in batch.answered_by.items()}
    schema = RECOMMENDED.with_metadata(note)
    count = 0

    def write(part: Path) -> None:
        nonlocal count
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for number, piece in enumerate(pieces):
                examples = _examples_of(piece, pieces[:number], work)
                count += len(examples)
                writer.write_table(pa.Table.from_pylist(list(_lines(examples, piece, contract)), schema=schema))

    write_atomically(out, write)
    return count


def _examples_of(piece: Piece, before: list[Piece], work: Path) -> pl.DataFrame:
    """A piece's rows of its shard, with the columns that recommendations show."""
    shard = piece.target.name.rsplit("-", 1)[0]
    start = sum(pq.read_metadata(one.target).num_rows for one in before if one.target.name.startswith(f"{shard}-"))
    rows = scan_parquet(work / TODAY / f"{shard}.parquet")
    shown = rows.select("user_id", "candidates", "candidate_titles", "retrieved", "triples")
    return shown.slice(start, pq.read_metadata(piece.target).num_rows).collect()


def _lines(examples: pl.DataFrame, piece: Piece, contract: AdapterContract) -> Iterator[dict[str, Any]]:
    answered = conform(read_parquet(piece.target), PREDICTIONS)
    if contract.residual:
        answered = add_retriever(answered, examples["retrieved"], contract.residual)
    for example, answer in zip(examples.iter_rows(named=True), answered.iter_rows(named=True), strict=True):
        scores = answer["scores"] or [None] * len(answer["answers"])
        best = list(zip(answer["answers"], scores, strict=True))[:NUM_ANSWERS]
        titles, facts = titles_of(example), facts_of(example)
        for place, (film, score) in enumerate(best, start=1):
            yield {
                "user_id": example["user_id"],
                "place": place,
                "movie_id": film,
                "title": titles[film],
                "score": score,
                "reason": facts.get(film),
            }


def titles_of(example: Mapping[str, Any]) -> dict[int, str]:
    """The title of each candidate of an example."""
    return dict(zip(example["candidates"], example["candidate_titles"], strict=True))


def facts_of(example: Mapping[str, Any]) -> dict[int, str]:
    """The first fact that an example's prompt has about each film."""
    facts: dict[int, str] = {}
    for triple in example["triples"]:
        facts.setdefault(triple["movie_id"], f"{triple['relation']}: {triple['entity_name']}")
    return facts
