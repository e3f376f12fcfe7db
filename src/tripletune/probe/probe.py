"""The probe stage: which parts of the prompt the tuned model relies on, and how stable its answers are.

Prompts are rendered from changed inputs by the renderer of ``generate`` and scored by the code that ranks. Each log
states the purpose of its rows: what is learnt from must be a training example.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tripletune.config import ProbeConfig, RankConfig
from tripletune.contract import read_contract, require_same
from tripletune.errors import InputError
from tripletune.probe.changes import (
    Variant,
    compare,
    control_variants,
    fact_variants,
    part_variants,
    perturbed_variants,
)
from tripletune.probe.counterfactual import FactPool
from tripletune.probe.inputs import Inputs, rendered_as_published
from tripletune.probe.scores import score_prompts
from tripletune.probe.summary import headline, say_places, say_reliance, summarise_logs
from tripletune.prompts.engine import Frame
from tripletune.rank.answering import answer_job
from tripletune.rank.pieces import COLUMNS, cut_prompts
from tripletune.rank.workers.job import RankJob
from tripletune.rank.workers.launch import visible_gpus, worker_environments
from tripletune.schemas.probe import FACT_CHANGES_NAME, PROBED_NAME, STABILITY_NAME
from tripletune.schemas.query import QUERY_KEY
from tripletune.stable_hash import VIEWERS, mix
from tripletune.store.parquet import parquet_files, write_parquet
from tripletune.store.paths import SCRATCH, Facts
from tripletune.store.read import read_parquet, scan_parquet
from tripletune.store.shards import shard_name

_PROMPTS = 64
"""Prompts in a file, and so in a piece of the ranking."""
_MIXED = 25 << 40
"""Added to the run's seed for the order in which prompts are scored."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """What a run is probed with, besides its examples."""

    settings: ProbeConfig
    rank: RankConfig
    frame: Frame
    pool: FactPool
    prompt_contract: Mapping[str, Any]
    confidence: float
    resamples: int
    seed: int
    folders: Mapping[str, Path]
    """Folders of the stages whose film vectors the adapter reads, by stage."""


def choose_examples(shards: Path, settings: ProbeConfig, seed: int) -> pl.DataFrame:
    """The examples to probe: ``EXAMPLES``, sorted by ``QUERY_KEY``, with ``relies`` and ``steady``.

    Of each purpose the users are the first by the hash that ranking takes too. ``relies``: of the first so many users
    with an answer among the candidates, the examples that have one. ``steady``: all examples of the first so many.

    Raises:
        InputError: there is none.
    """
    found = []
    for purpose in settings.purposes:
        rows = scan_parquet(parquet_files(shards, purpose))
        answerable = pl.col("answers").list.set_intersection("candidates").list.len() > 0
        keys = rows.select("example_id", "user_id", relies=answerable).collect()
        steady = _first_users(keys["user_id"], settings.users, seed)
        relying = _first_users(keys.filter("relies")["user_id"], settings.users, seed)
        chosen = keys.with_columns(
            relies=pl.col("relies") & pl.col("user_id").is_in(relying.implode()),
            steady=pl.col("user_id").is_in(steady.implode()) & pl.lit(bool(settings.perturbations)),
        ).filter(pl.col("relies") | pl.col("steady"))
        flags = chosen.select("example_id", "relies", "steady")
        found.append(rows.join(flags.lazy(), on="example_id", how="inner").collect())
    examples = pl.concat(found).sort(QUERY_KEY)
    if examples.is_empty():
        raise InputError(
            f"{shards} has no example of probe.purposes = {list(settings.purposes)} to probe; name other purposes, or "
            "set probe.users to 0"
        )
    return examples


def _first_users(users: pl.Series, most: int, seed: int) -> pl.Series:
    distinct = users.unique()
    hashed = pl.DataFrame({"user": distinct, "hashed": pl.Series(mix(distinct.to_numpy(), seed + VIEWERS))})
    return hashed.sort("hashed", "user")["user"].head(most)


def probe_examples(
    examples: pl.DataFrame, finetuned: Path, out: Path, probing: Probing, stability: pl.DataFrame
) -> Facts:
    """Write the logs and their summary.

    Args:
        examples: of ``choose_examples``.
        finetuned: the finetune stage's folder.
        out: work folder; pieces that a killed run finished are kept.
        probing: settings and what prompts are rendered with.
        stability: the retriever's rows of ``STABILITY``.

    Returns:
        Facts: examples and prompts, what the summary says, seconds and tokens, and the headline numbers.

    Raises:
        ContractError: the adapter was trained on other prompts.
        InputError: a prompt is not rendered again as it was published.
    """
    contract = read_contract(finetuned)
    require_same(probing.prompt_contract, contract)
    whole, variants = render_variants(examples, probing)
    prompts = pl.concat([whole, *(variant.prompts.drop("row") for variant in variants)])
    answered, seconds = _score(prompts, finetuned, out, probing)
    scored = score_prompts(prompts, answered, contract.residual)
    logs = compare(
        whole,
        variants,
        {system: rows[: len(whole)] for system, rows in scored.items()},
        {system: rows[len(whole) :] for system, rows in scored.items()},
    )
    logs[STABILITY_NAME] = pl.concat([logs[STABILITY_NAME], stability]).sort("example_id", "system", "perturbation")
    summary = summarise_logs(logs, confidence=probing.confidence, resamples=probing.resamples, seed=probing.seed)
    for name, rows in {**logs, PROBED_NAME: summary}.items():
        write_parquet(out / name, rows)
    said = [*say_reliance(summary), *say_places(summary)]
    for sentence in said:
        log.info("probe: %s", sentence)
    return {
        "examples": len(whole),
        "prompts": len(prompts),
        "facts_probed": logs[FACT_CHANGES_NAME].select("example_id", "movie_id", "relation", "entity").unique().height,
        "seconds": round(seconds, 3),
        "said": " · ".join(said),
        **headline(summary),
    }


def render_variants(examples: pl.DataFrame, probing: Probing) -> tuple[pl.DataFrame, list[Variant]]:
    """The examples rendered again, and every changed prompt."""
    inputs = Inputs.of(examples, probing.frame)
    whole = rendered_as_published(inputs, examples)
    relies, steady = (examples[name].arg_true().to_list() for name in ("relies", "steady"))
    settings = probing.settings
    pool = probing.pool if settings.swap_facts else None
    return whole, [
        *control_variants(whole, relies, steady),
        *part_variants(inputs, whole, relies, probing.pool),
        *fact_variants(inputs, whole, relies, settings.facts, pool),
        *perturbed_variants(inputs, whole, steady, settings.perturbations),
    ]


def _score(prompts: pl.DataFrame, finetuned: Path, out: Path, probing: Probing) -> tuple[pl.DataFrame, float]:
    """Every candidate's score under each prompt, in the order of the prompts, and the seconds that it took.

    Prompts are scored in the order of a hash, so that the whole prompt and its control have other neighbours.
    """
    order = pl.Series(np.argsort(mix(np.arange(len(prompts)), probing.seed + _MIXED), kind="stable"))
    files, folder = out / SCRATCH / "prompts", out / SCRATCH / "pieces"
    for made in (files, folder):
        made.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(prompts.select(COLUMNS)[order].iter_slices(_PROMPTS)):
        write_parquet(files / shard_name(f"{number:06d}"), part)
    pieces = cut_prompts(files, folder, scored=True)
    job = RankJob(
        shards=files,
        finetuned=finetuned,
        pieces=folder,
        merged=out / SCRATCH / "merged",
        settings=probing.rank,
        seed=probing.seed,
        prompts=files,
        scored=True,
        folders=dict(probing.folders),
        environments=worker_environments(probing.rank.workers, visible_gpus()),
    )
    took = answer_job(job, pieces, out / SCRATCH)
    answered = pl.concat(read_parquet(piece.target) for piece in pieces)
    return answered[order.arg_sort()], took.seconds
