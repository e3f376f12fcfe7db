"""Prompt shards: one file per bucket of viewers and purpose, each written exactly once, by whichever worker.

``generate_shards`` plans a job per bucket, has the jobs mapped (one after the other, or over threads, processes or a
cluster), and counts what is there in the end. A job is plain data, paths and settings and never frames, so that it can
travel; a shard depends on its own bucket alone, so its bytes know nothing of who wrote it. A shard that has its final
name is finished: whoever comes to it again leaves it, and a killed run goes on where it was.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import polars as pl

from tripletune.config import PromptConfig, RetrieveConfig
from tripletune.errors import ConfigError, InputError
from tripletune.fingerprint import TOKENIZER_FILES, sha256_file, sha256_json, source_hash
from tripletune.paths import Facts, remove_leftovers, write_atomically
from tripletune.prompts.engine import Frame, build_examples
from tripletune.prompts.evidence import collect_answers, collect_evidence
from tripletune.prompts.template import load_template
from tripletune.schemas import EXAMPLES, PROMPT_CHARS, PURPOSES, QUESTION, SHORTENED

ROW_GROUP = 1024
"""Examples in a row group, which a streaming reader decodes as one: some 6 MB in memory, 1.5 MB in the file; about as
many as a shuffle buffer holds. A file of the 32 M release has four (64 buckets of 3,140 viewers); a reader with several
processes gives each of them whole files, so there are more files than processes."""

_SOURCE = sha256_json([source_hash(name) for name in ("prompts", "schemas", "stable_hash")])
"""As this process loaded it: a worker that stays does not see the files change."""

_LOADING = threading.Lock()
"""Threads come at once at first, and each would load what all share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What all jobs of a run share; a worker loads what it names once."""

    ingest: Path
    settings: PromptConfig
    specialists: tuple[tuple[str, str], ...]
    """Fingerprints of ``lightgcn`` and ``rgat``, which stand in every row."""
    seed: int
    tokenizer: tuple[str, str] | None
    """Model and revision whose tokenizer counts; None: tokens are not counted."""
    made_with: str
    """Digest of the code, the libraries and the tokenizer's files here. A worker of a standing cluster may have others,
    and what it wrote would go by a fingerprint that is not its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """One bucket of viewers: plain data, paths absolute, that can be sent to a worker which sees the same files."""

    recipe: Recipe
    number: str
    """Three digits, in the names of the bucket's files."""
    split: Path
    retrieve: Path
    out: Path
    dislike: float
    previous: Path | None = None
    """An earlier night's finished shards, of which some rows are still right; None: all are rendered."""
    unchanged: Path | None = None
    """Folder with ``shard-NNN.parquet``: the questions (``schemas.QUESTION``) whose rows ``previous`` has."""

    @property
    def name(self) -> str:
        """The bucket's file in every folder."""
        return f"shard-{self.number}.parquet"

    def missing(self) -> list[str]:
        """The purposes whose shard is not there yet."""
        return [purpose for purpose in PURPOSES.categories if not (self.out / purpose / self.name).is_file()]


WriteShard = Callable[[ShardJob], None]
MapJobs = Callable[[WriteShard, Sequence[ShardJob]], None]
"""Calls the function once for each job, anywhere and in any order, and returns when all are done."""


def one_after_the_other(write: WriteShard, jobs: Sequence[ShardJob]) -> None:
    """Map the jobs in this thread."""
    for job in jobs:
        write(job)


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
    """The generate stage: ``train|valid|test/shard-NNN.parquet``.

    Args:
        ingest, split, retrieve: folders of the finished stages.
        out: work folder; shards in it under their final names are kept.
        settings, retrieve_settings: of the run.
        dislike: a rating below this is a dislike.
        specialists: fingerprints of ``lightgcn`` and ``rgat``, written into every row.
        tokenizer: model and revision whose tokenizer counts; None: tokens are not counted.
        previous, unchanged: an earlier night's shards and the questions whose rows are taken from them; see
            ``ShardJob``.
        map_jobs: who writes the shards.

    Returns:
        Examples by purpose, training viewers dropped because no answer was among their candidates, mean characters of
        a prompt; where tokens are counted, their mean and highest number and what was left out for the budget.

    Raises:
        ConfigError: the template is not there or not valid, or the tokenizer does not suit.
        InputError: retrieve's shards are not those of the split, there is no tokenizer, a prompt exceeds the budget
            with all left out that may be, or the workers wrote where this process cannot see it.
    """
    template = load_template(settings.template)
    recipe = Recipe(
        ingest=ingest.resolve(),
        settings=settings,
        specialists=tuple(sorted(specialists.items())),
        seed=seed,
        tokenizer=_absolute(tokenizer),
        made_with=_made_with(tokenizer),
    )
    jobs = [
        ShardJob(
            recipe=recipe,
            number=number,
            split=split.resolve(),
            retrieve=retrieve.resolve(),
            out=out.resolve(),
            dislike=dislike,
            previous=previous and previous.resolve(),
            unchanged=unchanged and unchanged.resolve(),
        )
        for number in _numbers(split, retrieve)
    ]
    for purpose in PURPOSES.categories:
        (out / purpose).mkdir(exist_ok=True)
    try:
        if left := [job for job in jobs if job.missing()]:
            map_jobs(write_shard, left)
    finally:
        _shared_frame.cache_clear()  # where this process wrote itself; a long-lived one should not keep it
    _require_all(jobs)
    remove_leftovers(out)  # of writers that were killed while others went on
    facts = _facts(out, _count_train(jobs))
    return {**facts, "candidates": retrieve_settings.candidates, "template": template.id}


def write_shard(job: ShardJob) -> None:
    """Write those of the bucket's shards that are not there yet.

    Raises:
        ConfigError, InputError: as ``generate_shards``.
    """
    missing = job.missing()
    if not missing:
        return
    wanted = pl.col("purpose").is_in(missing)
    retrieved = pl.read_parquet(job.retrieve / "retrieved" / job.name).filter(wanted)
    kept = _kept_rows(job, missing)
    asked = retrieved.join(kept, on=QUESTION, how="anti", maintain_order="left")
    examples = pl.concat([_render(job, asked), kept]).sort(QUESTION, maintain_order=True)
    for purpose in missing:
        part = examples.filter(pl.col("purpose") == purpose)
        # unique: a worker that was given up for lost may still be at the same shard
        write_atomically(job.out / purpose / job.name, _writer(part), unique=True)


def _kept_rows(job: ShardJob, missing: Sequence[str]) -> pl.DataFrame:
    """The earlier night's examples that would come out the same; ``schemas.EXAMPLES``."""
    if job.previous is None or job.unchanged is None:
        return EXAMPLES.to_frame()
    unchanged = pl.read_parquet(job.unchanged / job.name)
    earlier = pl.read_parquet([job.previous / purpose / job.name for purpose in missing])
    return earlier.join(unchanged, on=QUESTION, how="semi")


def _render(job: ShardJob, retrieved: pl.DataFrame) -> pl.DataFrame:
    """Examples of the questions asked; ``schemas.EXAMPLES``."""
    settings = job.recipe.settings
    rows = pl.read_parquet(job.split / f"shard={job.number}" / "part.parquet", hive_partitioning=False)
    choices = pl.read_parquet(job.retrieve / "choices" / job.name)
    return build_examples(
        retrieved,
        choices.join(retrieved, on=QUESTION, how="semi", maintain_order="left"),
        collect_evidence(
            rows, retrieved, dislike=job.dislike, max_liked=settings.max_liked, max_disliked=settings.max_disliked
        ),
        collect_answers(rows, retrieved),
        _frame_of(job.recipe),
    )


def _absolute(tokenizer: tuple[str, str] | None) -> tuple[str, str] | None:
    if tokenizer and Path(tokenizer[0]).is_dir():
        return str(Path(tokenizer[0]).resolve()), tokenizer[1]
    return tokenizer


def _made_with(tokenizer: tuple[str, str] | None) -> str:
    versions = {
        library: metadata.version(library).split("+")[0] for library in ("polars", "transformers", "tokenizers")
    }
    folder = Path(tokenizer[0]) if tokenizer else Path()
    files = {name: sha256_file(folder / name) for name in sorted(TOKENIZER_FILES) if (folder / name).is_file()}
    return sha256_json({"source": _SOURCE, "versions": versions, "tokenizer": files if tokenizer else {}})


def _frame_of(recipe: Recipe) -> Frame:
    with _LOADING:
        return _shared_frame(recipe)


@functools.lru_cache(maxsize=1)
def _shared_frame(recipe: Recipe) -> Frame:
    """Template, titles and tokenizer, read once per process and kept for the next job."""
    if _made_with(recipe.tokenizer) != recipe.made_with:
        raise ConfigError(
            "a worker runs other code, libraries or a tokenizer than this run; give the cluster the same checkout and "
            "model, and start it again"
        )
    return Frame.load(recipe.ingest, recipe.settings, dict(recipe.specialists), recipe.seed, recipe.tokenizer)


def _numbers(split: Path, retrieve: Path) -> list[str]:
    numbers = sorted(path.stem.removeprefix("shard-") for path in (retrieve / "retrieved").glob("shard-*.parquet"))
    buckets = sorted(path.parent.name.removeprefix("shard=") for path in split.glob("shard=*/part.parquet"))
    if not numbers or numbers != buckets:
        raise InputError(f"{retrieve} has {len(numbers)} shards and {split} has {len(buckets)}; run retrieve again")
    return numbers


def _require_all(jobs: Sequence[ShardJob]) -> None:
    lost = [job.number for job in jobs if job.missing()]
    if lost:
        raise InputError(
            f"{len(lost)} of {len(jobs)} shards are not in {jobs[0].out} although their workers are done, the first is "
            f"{lost[0]}; put --artifacts on a disk that this machine and all workers share, under the same path"
        )


def _writer(frame: pl.DataFrame) -> Callable[[Path], None]:
    return lambda path: frame.rechunk().write_parquet(path, compression="zstd", row_group_size=ROW_GROUP)


def _count_train(jobs: Sequence[ShardJob]) -> int:
    asked = pl.scan_parquet([job.retrieve / "retrieved" / job.name for job in jobs])
    return int(asked.select((pl.col("purpose") == "train").sum()).collect(engine="streaming").item())


def _facts(out: Path, num_train: int) -> Facts:
    left_out = {f"left_out_{name}": pl.col("shortened").struct.field(name) for name in SHORTENED.to_schema()}
    counts = (
        pl.scan_parquet(
            [path for purpose in PURPOSES.categories for path in sorted((out / purpose).glob("shard-*.parquet"))]
        )
        .select("purpose", "num_tokens", chars=PROMPT_CHARS, **left_out)
        .group_by("purpose")
        .agg(
            pl.col("chars", *left_out).sum(),
            examples=pl.len(),
            shortened=(pl.sum_horizontal(*left_out) > 0).sum(),
            tokens=pl.col("num_tokens").sum(),
            longest=pl.col("num_tokens").max(),
        )
        .collect(engine="streaming")
    )
    examples = {row["purpose"]: row["examples"] for row in counts.sort("purpose").iter_rows(named=True)}
    total = sum(examples.values())
    longest = counts["longest"].max()
    told: Facts = {}
    if longest is not None:
        told = {
            "mean_tokens": round(counts["tokens"].sum() / total, 1),
            "longest_tokens": longest,
            "shortened": counts["shortened"].sum(),
            **{name: counts[name].sum() for name in left_out},
        }
    return {
        "examples": examples,
        "train_without_answer": num_train - examples.get("train", 0),
        "mean_prompt_chars": round(counts["chars"].sum() / total, 1) if total else 0.0,
        **told,
    }
