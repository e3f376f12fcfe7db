"""Token ids of a training's examples, made once by the stage and mapped into memory by every rank.

The stage tokenises before any rank starts: nothing waits in a barrier, and several ranks share one copy. A set of
examples is a folder of Arrow files, one for some row groups of one source file, so that neither ids nor files depend on
the number of processes. What a set was made from lies next to it; a resumed run keeps whole files that agree.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tripletune.behaviour.tables import read_film_tables
from tripletune.chat import DATE, load_tokenizer
from tripletune.errors import TrainingCrash, TrainingError
from tripletune.finetune.distillation import Taught, read_taught, taught_scores
from tripletune.finetune.examples import column_maker
from tripletune.finetune.job import TrainingJob
from tripletune.processes import lifeline
from tripletune.store.files import write_atomically, write_json
from tripletune.store.fingerprint import TOKENIZER_FILES, input_checksums, sha256_file

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN, TRAIN_TEXT, EVALUATION, SELECT = "train", "train-text", "evaluation", "select"
"""Sets of examples: to train on (with behaviour tokens, where there are any, and then as text alone too), to evaluate
on, and to set the weight of the model's scores."""
MADE_OF = "made_of.json"
POOL_FROM = 20_000
"""Examples from which further processes are started: with fewer, their imports take longer than they save, as the
tokenizer's own threads use all cores anyway (``benchmarks/tokenize_200k.md``)."""
_ROW_GROUPS = 4
"""Row groups of a source file in a piece of work: a file of the 32 M release is one."""
_AT_ONCE = 1000
"""Examples in a record batch, which are tokenised together."""
_KINDS = {
    "example_id": pa.string(),
    "input_ids": pa.list_(pa.int32()),
    "labels": pa.list_(pa.int32()),
    "label_ids": pa.list_(pa.int32()),
    "targets": pa.list_(pa.float64()),
    "places": pa.list_(pa.int32()),
    "taught": pa.list_(pa.float32()),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TokenSet:
    """Examples that are read as one dataset."""

    name: str
    sources: tuple[Path, ...]
    purpose: str
    """Whose film vectors their behaviour tokens are; empty: text alone."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """The row groups ``first`` to ``end - 1`` of a source file, and the file for their tokens."""

    source: Path
    first: int
    end: int
    rows: int
    purpose: str
    out: Path


def token_sets(job: TrainingJob) -> list[TokenSet]:
    """The sets of a job, in the order in which their errors are looked for."""
    train, valid = ("train", "valid") if job.films else ("", "")
    sets = [TokenSet(TRAIN, job.train, train)]
    if job.films:
        sets.append(TokenSet(TRAIN_TEXT, job.train, ""))
    sets += [
        TokenSet(name, (path,), valid) for name, path in ((EVALUATION, job.evaluation), (SELECT, job.select)) if path
    ]
    return sets


def write_token_files(job: TrainingJob, workers: int | None = None) -> None:
    """Tokenise the job's examples into ``job.tokens``, but for whole files that are there and were made from the same.

    Args:
        job: its examples, base model and objective.
        workers: processes; None: as many as this process may use cores, and none but this one for fewer than
            ``POOL_FROM`` examples.

    Raises:
        TrainingError: an example exceeds ``finetune.max_length``; or as ``tokenize_labels`` raises.
        ConfigError, ContractError: the base model's chat template cannot be used.
        TrainingCrash: a process was killed.
    """
    sets = token_sets(job)
    for one in sets:
        _keep_what_agrees(job, one)
    missing = [piece for one in sets for piece in _pieces(job, one) if not piece.out.is_file()]
    num_examples, started = sum(piece.rows for piece in missing), time.perf_counter()
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if num_examples >= POOL_FROM else 1
    workers = min(workers, len(missing))
    if workers > 1:
        _write_in_processes(job, missing, workers)
    elif missing:
        writer = _Writer(job)
        for piece in missing:
            writer.write(piece)
    if missing:
        seconds = time.perf_counter() - started
        log.info("finetune: %s examples tokenised in %.1f s, by %d processes", f"{num_examples:,}", seconds, workers)
    for one in sets:
        _require_fitting(job, one)


def read_token_files(job: TrainingJob, name: str) -> Dataset:
    """A set as a dataset whose files are mapped into memory, in the order of the source files."""
    from datasets import Dataset, concatenate_datasets  # the stage needs none of it

    whole = concatenate_datasets([Dataset.from_file(str(path)) for path in _written(job, name)])
    return whole.remove_columns("example_id")


def token_lengths(examples: Dataset) -> list[int]:
    """Tokens of each example, from the offsets in the files: no id is read."""
    tables = examples.with_format("arrow").iter(batch_size=_AT_ONCE)
    return [length for table in tables for length in pc.list_value_length(table["input_ids"]).to_pylist()]


def _written(job: TrainingJob, name: str) -> list[Path]:
    return sorted((job.tokens / name).glob("*.arrow"))


def _keep_what_agrees(job: TrainingJob, one: TokenSet) -> None:
    """Remove a set that was made from something else, and note what it is made from now."""
    folder = job.tokens / one.name
    now = _made_of(job, one)
    try:
        same = json.loads((folder / MADE_OF).read_text(encoding="utf-8")) == now
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / MADE_OF, now)


def _made_of(job: TrainingJob, one: TokenSet) -> dict[str, Any]:
    """All that the ids depend on, in the same work folder and so by the same code."""
    base = Path(job.base)
    read = {"tokenizer": lambda below: len(below.parts) == 1 and below.name in TOKENIZER_FILES}
    named = [path.name for path in one.sources]
    taught = {"teacher": [sha256_file(path) for path in _taught_files(job, one.sources)]} if job.teacher else {}
    films = {"films": sha256_file(job.films), "columns": list(job.film_columns)} if job.films and one.purpose else {}
    return {
        "examples": list(map(list, zip(named, map(sha256_file, one.sources), strict=True))),
        "tokenizer": input_checksums({"tokenizer": base}, read) if base.is_dir() else [job.base, job.hub_revision],
        "date": DATE,
        "objective": job.settings.objective,
        "targets": job.settings.targets,
        "answer_style": job.answer_style,
        "behaviour": {"purpose": one.purpose, **films},
        **taught,
    }


def _taught_files(job: TrainingJob, sources: Sequence[Path]) -> list[Path]:
    """The teacher's files for those of some sources that are trained on."""
    return [job.teacher / source.name for source in sources if job.teacher and source in job.train]


def _pieces(job: TrainingJob, one: TokenSet) -> Iterator[_Piece]:
    number = 0
    for source in one.sources:
        groups = pq.ParquetFile(source).metadata
        for first in range(0, groups.num_row_groups, _ROW_GROUPS):
            end = min(first + _ROW_GROUPS, groups.num_row_groups)
            rows = sum(groups.row_group(group).num_rows for group in range(first, end))
            if rows:
                yield _Piece(source, first, end, rows, one.purpose, job.tokens / one.name / f"piece-{number:05d}.arrow")
                number += 1


class _Writer:
    """Tokenises pieces; the tokenizer and what else is read once are kept for the next one."""

    def __init__(self, job: TrainingJob) -> None:
        self._job, self._tokenizer = job, load_tokenizer(job.base, job.hub_revision)
        self._films = read_film_tables(job.films) if job.films else None
        self._makers: dict[str, Any] = {}

    def write(self, piece: _Piece) -> None:
        """Write a piece's file, which appears when it is whole."""
        make = self._maker(piece.purpose)
        source = pq.ParquetFile(piece.source)
        batches = source.iter_batches(_AT_ONCE, row_groups=range(piece.first, piece.end), columns=self._job.columns)
        taught = next(map(read_taught, _taught_files(self._job, [piece.source])), None)

        def write(part: Path) -> None:
            with pa.OSFile(str(part), "wb") as sink:
                _write_stream(sink, (self._tokenised(batch, make, taught) for batch in batches))

        write_atomically(piece.out, write, unique=True)

    def _tokenised(self, batch: pa.RecordBatch, make: Any, taught: Taught | None) -> pa.RecordBatch:
        rows = batch.to_pydict()
        columns = {"example_id": rows["example_id"], **make(rows)}
        if taught is not None:
            columns["taught"] = taught_scores(rows, taught)
        return pa.record_batch({name: pa.array(values, _KINDS[name]) for name, values in columns.items()})

    def _maker(self, purpose: str) -> Any:
        if purpose not in self._makers:
            job, behaviour = self._job, None
            if purpose and self._films:
                behaviour = self._films.tokens(purpose, self._tokenizer, job.film_columns, job.base_name)
            self._makers[purpose] = column_maker(job, self._tokenizer, behaviour)
        return self._makers[purpose]


def _write_stream(sink: pa.NativeFile, batches: Iterator[pa.RecordBatch]) -> None:
    """The format that ``datasets`` maps: a stream of record batches."""
    first = next(batches)
    with pa.ipc.new_stream(sink, first.schema) as stream:
        stream.write_batch(first)
        for batch in batches:
            stream.write_batch(batch)


def _write_in_processes(job: TrainingJob, pieces: Sequence[_Piece], workers: int) -> None:
    """Write pieces in processes of their own, each of which takes every ``workers``-th piece.

    They are new ones ("spawn"): a fork would copy locks that threads of torch, polars or an orchestrator hold. Each
    is a pool of one: a pool that loses a process while it still starts another one closes the pipes that this one is
    being handed, or waits for it for ever.
    """
    identity = lifeline.describe(psutil.Process())
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, context, initializer=_begin, initargs=(job, identity)) for _ in range(workers)]
    tasks: list[Future[None]] = []
    try:
        for pool, piece in zip(itertools.cycle(pools), pieces, strict=False):
            tasks.append(pool.submit(_write_piece, piece))
        for task in tasks:
            task.result()  # the first error in the order of the examples
    except BrokenProcessPool:
        raise TrainingCrash(
            f"a process that tokenises was killed, most often for want of memory: {workers} run at once, one for each "
            "core; run again to go on from the files that are whole, with more memory or fewer cores"
        ) from None
    finally:
        for task in tasks:
            task.cancel()
        for pool in pools:
            pool.shutdown()


_job: TrainingJob | None = None
"""Of a process of the pool."""


def _begin(job: TrainingJob, stage: str) -> None:
    """Start a process of the pool: it ends with the stage, and uses one thread."""
    global _job
    os.environ |= {lifeline.SUPERVISOR: stage, "TOKENIZERS_PARALLELISM": "false"}
    lifeline.hold()
    _job = job


@functools.cache
def _own_writer() -> _Writer:
    assert _job is not None
    return _Writer(_job)


def _write_piece(piece: _Piece) -> None:
    _own_writer().write(piece)


def _require_fitting(job: TrainingJob, one: TokenSet) -> None:
    """Refuse examples of more than ``max_length`` tokens; reads the offsets in the files and no id."""
    num_examples, too_long, longest, name = 0, 0, 0, ""
    for path in _written(job, one.name):
        with pa.memory_map(str(path)) as mapped:
            for batch in pa.ipc.open_stream(mapped):
                lengths = pc.list_value_length(batch["input_ids"])
                num_examples += len(batch)
                too_long += pc.sum(pc.greater(lengths, job.settings.max_length)).as_py() or 0
                greatest = pc.max(lengths).as_py()
                if greatest > longest:
                    longest = greatest
                    name = batch["example_id"][pc.index(lengths, greatest).as_py()].as_py()
    if too_long:
        raise TrainingError(
            f"{too_long} of {num_examples} examples are longer than finetune.max_length = {job.settings.max_length} "
            f"tokens, the longest, {name}, has {longest}; set finetune.max_length to {longest} or more, or show less "
            "(prompt.max_liked, retrieve.num_candidates, retrieve.triples_per_film)"
        )
