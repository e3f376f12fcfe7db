"""Prompt shards: one file per bucket of users and purpose, each written exactly once, by any worker.

``generate_shards`` plans one job per bucket (in an increment, where each bucket has few new queries, one job for
several buckets), maps the jobs (one after the other, or over threads, processes or a cluster), and counts the result. A
job is plain data (paths and settings, no frames), so it can be sent to another machine. A shard depends on its own
bucket alone, so its bytes do not depend on the worker. A shard under its final name is finished and is not written
again, so a killed run resumes.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from tripletune.config import PromptConfig, RetrieveConfig
from tripletune.config.base import is_path
from tripletune.errors import ConfigError, InputError
from tripletune.progress import Progress
from tripletune.prompts.engine import Frame, build_examples
from tripletune.prompts.evidence import SPLIT_COLUMNS, collect_answers, collect_evidence
from tripletune.prompts.made_with import digest_code
from tripletune.prompts.shard_facts import count_shards, note_chars
from tripletune.prompts.template import Template, load_template
from tripletune.prompts.worked import write_worked
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.query import PURPOSES, QUERY_KEY
from tripletune.schemas.worked import WorkedExamples
from tripletune.store.files import remove_leftovers
from tripletune.store.parquet import write_parquet
from tripletune.store.paths import Facts
from tripletune.store.read import read_parquet, scan_parquet
from tripletune.store.shards import shard_files, shard_name, split_file, split_files

ROW_GROUP = 1024
"""Examples in a row group, which a streaming reader decodes as one: some 6 MB in memory, 1.5 MB in the file; about as
many as a shuffle buffer holds. A file of the 32 M release has four (64 buckets of 3,140 users); a reader with several
processes gives each of them whole files, so there are more files than processes."""

TOGETHER = 8
"""Buckets of an increment's job. A bucket with 30 examples to render would spend most of its time on fixed costs, which
a job pays once. No more than this, so that there are more jobs than workers."""

_LOADING = threading.Lock()
"""Held while the shared frame loads: threads start at the same time, and each would load it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Paths and settings that all jobs of a run share; a worker loads the files once."""

    ingest: Path
    settings: PromptConfig
    specialists: tuple[tuple[str, str], ...]
    """Fingerprint of each stage of ``SPECIALISTS``; columns of every row."""
    seed: int
    tokenizer: tuple[str, str] | None
    """Model and revision of the tokenizer to count with; None: tokens are not counted."""
    template_sha256: str
    """Hash of the template as this process read it; a worker may find another file under the same path."""
    worked: WorkedExamples | None
    """Worked examples in every prompt; None: there are none."""
    made_with: str
    """``digest_code`` of this process. A worker of a standing cluster may run other code; its shards would be published
    under a fingerprint that does not cover that code."""

    @classmethod
    def of(
        cls,
        ingest: Path,
        settings: PromptConfig,
        template: Template,
        specialists: Mapping[str, str],
        seed: int,
        tokenizer: tuple[str, str] | None,
        worked: WorkedExamples | None,
    ) -> Recipe:
        """With absolute paths; arguments as in ``generate_shards``."""
        if is_path(settings.template):
            settings = settings.model_copy(update={"template": str(Path(settings.template).resolve())})
        return cls(
            ingest=ingest.resolve(),
            settings=settings,
            specialists=tuple(sorted(specialists.items())),
            seed=seed,
            tokenizer=_absolute(tokenizer),
            template_sha256=template.sha256,
            worked=worked,
            made_with=digest_code(tokenizer),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """Some buckets of users: plain data with absolute paths, for any worker that sees the same files."""

    recipe: Recipe
    numbers: tuple[str, ...]
    """Numbers of the buckets; three digits each, as in the names of a bucket's files."""
    split: Path
    retrieve: Path
    out: Path
    dislike: float
    previous: Path | None = None
    """Finished shards of an earlier run, from which unchanged rows are reused; None: all are rendered."""
    unchanged: Path | None = None
    """Folder with ``shard-NNN.parquet``: the queries (``QUERY_KEY``) whose rows are reused from ``previous``."""

    @property
    def number(self) -> str:
        """Number of the first bucket; names the job."""
        return self.numbers[0]

    def missing(self) -> dict[str, list[str]]:
        """Purposes whose shard does not exist yet, by bucket number; complete buckets are not listed."""
        absent = {
            number: [one for one in PURPOSES.categories if not (self.out / one / shard_name(number)).is_file()]
            for number in self.numbers
        }
        return {number: purposes for number, purposes in absent.items() if purposes}


WriteShard = Callable[[ShardJob], None]
MapJobs = Callable[[WriteShard, Sequence[ShardJob]], None]
"""Call the function once for each job, on any worker and in any order, and return when all are done."""


def one_after_the_other(write: WriteShard, jobs: Sequence[ShardJob]) -> None:
    """Map the jobs in this thread."""
    with Progress("prompts", len(jobs), unit="parts") as progress:
        for job in jobs:
            write(job)
            progress.advance()


def generate_shards(
    ingest: Path,
    split: Path,
    retrieve: Path,
    out: Path,
    settings: PromptConfig,
    retrieve_settings: RetrieveConfig,
    *,
    dislike: float,
    specialists: Mapping[str, str],
    seed: int,
    tokenizer: tuple[str, str] | None = None,
    previous: Path | None = None,
    unchanged: Path | None = None,
    map_jobs: MapJobs = one_after_the_other,
) -> Facts:
    """Run the generate stage: write ``train|valid|test/shard-NNN.parquet``.

    Args:
        ingest, split, retrieve: folders of the finished stages.
        out: work folder; shards in it under their final names are kept.
        settings, retrieve_settings: config sections of the run.
        dislike: a rating below this is a dislike.
        specialists: fingerprint of each stage of ``SPECIALISTS``, written into every row.
        tokenizer: model and revision of the tokenizer to count with; None: tokens are not counted.
        previous, unchanged: shards of an earlier run and the queries whose rows are reused from them; see ``ShardJob``.
        map_jobs: maps ``write_shard`` over the jobs.

    Returns:
        Facts of ``count_shards``, the source of the candidates, the template with its answer style and, if it has some,
        its inline hints, and the ids of the worked examples, if there are some.

    Raises:
        ConfigError: the template is missing or invalid, or the tokenizer does not suit.
        InputError: retrieve's shards are not those of the split, there is no tokenizer, a prompt exceeds the budget
            with all dropped that may be, or the workers wrote to a disk that this process cannot see.
    """
    template, worked = load_template(settings.template), None
    if settings.worked_examples:
        frame = Frame.load(ingest, settings, specialists, seed)
        worked = write_worked(split, retrieve, out, frame, dislike)
        template = template.with_worked(worked.text)
    recipe = Recipe.of(ingest, settings, template, specialists, seed, tokenizer, worked)
    job = ShardJob(
        recipe=recipe,
        numbers=_numbers(split, retrieve),
        split=split.resolve(),
        retrieve=retrieve.resolve(),
        out=out.resolve(),
        dislike=dislike,
        previous=previous and previous.resolve(),
        unchanged=unchanged and unchanged.resolve(),
    )
    _write_all([replace(job, numbers=numbers) for numbers in _together(job)], job.out, map_jobs)
    facts = count_shards(out, retrieve)
    return {
        **facts,
        "candidates": retrieve_settings.candidates,
        "template": template.id,
        "answer_style": template.answer_style,
        **({"inline": template.inline_in(settings.triple_form).as_json()} if template.inline else {}),
        **({"worked_examples": list(worked.ids)} if worked else {}),
    }


def write_shard(job: ShardJob) -> None:
    """Write the job's shards that do not exist yet.

    Raises:
        ConfigError, InputError: as ``generate_shards``.
    """
    missing = job.missing()
    if not missing:
        return
    frame = _frame_of(job.recipe)
    asked = {number: _asked(job, number, purposes) for number, purposes in missing.items()}
    rendered = _render(job, list(missing), pl.concat(asked.values()), frame)
    for number, purposes in missing.items():
        rows, order = _with_earlier(job, number, purposes, rendered, asked[number])
        for purpose in purposes:
            part = _in_row_groups(rows, order.filter(pl.col("purpose") == purpose)["row"])
            # unique: a worker that was declared lost may still be writing the same shard
            path = job.out / purpose / shard_name(number)
            write_parquet(path, part, row_group_size=ROW_GROUP, metadata=note_chars(part), unique=True)


def _asked(job: ShardJob, number: str, purposes: Sequence[str]) -> pl.DataFrame:
    """Queries of the bucket whose example is not reused from an earlier run; ``RETRIEVED``."""
    whole = read_parquet(job.retrieve / "retrieved" / shard_name(number))
    retrieved = whole.filter(pl.col("purpose").is_in(purposes))
    if job.recipe.worked:  # no prompt shows its own answer
        is_shown = (pl.col("purpose") == "train") & pl.col("user_id").is_in(job.recipe.worked.users)
        retrieved = retrieved.filter(~is_shown)
    if job.unchanged is None:
        return retrieved
    unchanged = read_parquet(job.unchanged / shard_name(number))
    return retrieved.join(unchanged, on=QUERY_KEY, how="anti", maintain_order="left")


def _render(job: ShardJob, numbers: Sequence[str], asked: pl.DataFrame, frame: Frame) -> pl.DataFrame:
    """Examples of the given queries of these buckets; ``EXAMPLES``."""
    if asked.is_empty():
        return EXAMPLES.to_frame()
    settings, mine = job.recipe.settings, pl.col("user_id").is_in(asked["user_id"].unique().implode())
    splits = [split_file(job.split, number) for number in numbers]
    rows = scan_parquet(splits, hive_partitioning=False).select(SPLIT_COLUMNS).filter(mine).collect()
    files = [job.retrieve / "choices" / shard_name(number) for number in numbers]
    choices = scan_parquet(files).filter(mine).collect()
    return build_examples(
        asked,
        choices.join(asked, on=QUERY_KEY, how="semi", maintain_order="left"),
        collect_evidence(
            rows, asked, dislike=job.dislike, max_liked=settings.max_liked, max_disliked=settings.max_disliked
        ),
        collect_answers(rows, asked),
        frame,
    )


def _with_earlier(
    job: ShardJob, number: str, purposes: Sequence[str], rendered: pl.DataFrame, asked: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Examples of the earlier run and the rendered ones, ``EXAMPLES``; and which of them belong to the bucket in this
    run: ``row, user_id, purpose, cutoff``, sorted by query."""
    if job.previous is None or job.unchanged is None:
        earlier, unchanged = EXAMPLES.to_frame(), asked.clear()
    else:
        earlier = read_parquet([job.previous / purpose / shard_name(number) for purpose in purposes])
        unchanged = read_parquet(job.unchanged / shard_name(number))
    rows = pl.concat([earlier, rendered], rechunk=True)  # rows are gathered from one piece in a third of the time
    queries = rows.select(*QUERY_KEY).with_row_index("row")
    kept = queries.head(len(earlier)).join(unchanged, on=QUERY_KEY, how="semi")
    new = queries.tail(len(rendered)).join(asked, on=QUERY_KEY, how="semi")
    return rows, pl.concat([kept, new]).sort(QUERY_KEY)


def _in_row_groups(rows: pl.DataFrame, order: pl.Series) -> pl.DataFrame:
    """Rows in the given order, each row group in memory of its own: from slices, Polars writes smaller pages of lists,
    in half again the time."""
    starts = range(0, max(len(order), 1), ROW_GROUP)
    return pl.concat([rows[order.slice(start, ROW_GROUP)] for start in starts], rechunk=False)


def _absolute(tokenizer: tuple[str, str] | None) -> tuple[str, str] | None:
    if tokenizer and Path(tokenizer[0]).is_dir():
        return str(Path(tokenizer[0]).resolve()), tokenizer[1]
    return tokenizer


def _frame_of(recipe: Recipe) -> Frame:
    with _LOADING:
        return _shared_frame(recipe)


@functools.lru_cache(maxsize=1)
def _shared_frame(recipe: Recipe) -> Frame:
    """Template, titles and tokenizer, read once per process and kept for the next job."""
    if digest_code(recipe.tokenizer) != recipe.made_with:
        raise ConfigError(
            "a worker runs other code, libraries or a tokenizer than this run; give the cluster the same checkout and "
            "model, and start it again"
        )
    frame = Frame.load(
        recipe.ingest, recipe.settings, dict(recipe.specialists), recipe.seed, recipe.tokenizer, recipe.worked
    )
    if frame.template.sha256 != recipe.template_sha256:
        raise ConfigError(
            f"prompt.template = {recipe.settings.template!r} has other contents on a worker than in this run; do not "
            "change it during a run, and keep it on a disk that this machine and all workers share, under the same path"
        )
    return frame


def _numbers(split: Path, retrieve: Path) -> tuple[str, ...]:
    numbers, shards = tuple(split_files(split)), shard_files(retrieve / "retrieved")
    if [path.name for path in shards] != [shard_name(number) for number in numbers]:
        raise InputError(f"{retrieve} has {len(shards)} shards and {split} has {len(numbers)}; run retrieve again")
    return numbers


def _together(job: ShardJob) -> list[tuple[str, ...]]:
    """Buckets of each job: one, or as many as together render no more than a row group."""
    if job.unchanged is None:
        return [(number,) for number in job.numbers]
    groups: list[tuple[str, ...]] = []
    room = 0
    for number in job.numbers:
        paths = (job.retrieve / "retrieved" / shard_name(number), job.unchanged / shard_name(number))
        here, kept = (pq.read_metadata(path).num_rows for path in paths)
        asked = here - kept
        if groups and asked <= room and len(groups[-1]) < TOGETHER:
            groups[-1] += (number,)
        else:
            groups.append((number,))
            room = ROW_GROUP
        room -= asked
    return groups


def _write_all(jobs: Sequence[ShardJob], out: Path, map_jobs: MapJobs) -> None:
    """Map the jobs that have shards to write.

    Raises:
        InputError: a shard is missing afterwards.
    """
    for purpose in PURPOSES.categories:
        (out / purpose).mkdir(exist_ok=True)
    try:
        if left := [job for job in jobs if job.missing()]:
            map_jobs(write_shard, left)
    finally:
        _shared_frame.cache_clear()  # filled if this process wrote shards itself; a long-lived one should not keep it
    lost = [number for job in jobs for number in job.missing()]
    if lost:
        raise InputError(
            f"{len(lost)} of {sum(len(job.numbers) for job in jobs)} shards are not in {out} although their "
            f"workers are done, the first is {lost[0]}; put --artifacts on a disk that this machine and all workers "
            "share, under the same path"
        )
    remove_leftovers(out)  # from writers that were killed while others went on
