"""What a new adapter is compared with: earlier versions, ranked again on this run's valid queries, and two baselines.

A version's old figures belong to other queries, so each one is ranked again: on this run's prompts, or where its
contract is another one on prompts of its own. One that can do neither, or whose weights are not finite, gives nothing
to compare with; a champion that is not comparable is kept. One whose files do not arrive may be there all the same, so
nothing passes it.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from tripletune.config import RunConfig
from tripletune.contract import read_contract, require_same
from tripletune.errors import ContractError, NonFiniteError, UserError
from tripletune.evaluate.metrics import PROMOTION_METRIC, mean_over_cutoffs, score_lists
from tripletune.ndcg import PROMOTION_CUTOFF
from tripletune.promote.decision import BEST, CHAMPION, EARLIER, RETRIEVER, UNTUNED, Reference, promotion_scores
from tripletune.promote.own_prompts import own_examples
from tripletune.prompts.engine import prompt_contract
from tripletune.rank.predict import rank_examples
from tripletune.store.paths import RunPaths, read_manifest
from tripletune.store.read import read_parquet
from tripletune.store.shards import shard_files
from tripletune.tracking import Tracker
from tripletune.versions import BEST as BEST_ALIAS
from tripletune.versions import Version, download_version, find_version, find_version_before, list_versions

_DAY_MS = 24 * 60 * 60 * 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Versions:
    """The registry's versions that a new adapter is compared with; None: there is none."""

    champion: Version | None
    best: Version | None
    """The champion where no version holds the title yet."""
    earlier: Version | None
    rolled_back: tuple[Version, ...] = ()


def find_versions(tracker: Tracker, model: str, earlier_days: int) -> Versions:
    """The champion, the best version, the champion of so many days ago, and the versions that were taken back."""
    champion = find_version(tracker, model)
    best = find_version(tracker, model, BEST_ALIAS) or champion
    earlier = find_version_before(tracker, model, int(time.time() * 1000) - earlier_days * _DAY_MS)
    rolled_back = tuple(one for one in list_versions(tracker, model) if one.is_rolled_back)
    return Versions(champion, best, earlier, rolled_back)


def gather_references(
    paths: RunPaths, config: RunConfig, scores: pl.DataFrame, tracker: Tracker, versions: Versions, scratch: Path
) -> list[Reference]:
    """The references of this run's adapter, with their values for the users who judge it.

    Args:
        paths: outputs of the run whose adapter asks to be promoted.
        config: its settings.
        scores: its own values.
        tracker: where the versions' files are.
        versions: to compare with; each is ranked once, whatever it is called.
        scratch: folder for their files; gone afterwards.
    """
    named = (
        (CHAMPION, versions.champion, "there is no champion yet"),
        (BEST, versions.best, "there is no version yet"),
        (EARLIER, versions.earlier, f"no version is {config.promote.earlier_days} days old yet"),
    )
    ranked: dict[str, Reference] = {}
    references = []
    for name, version, why in named:
        if version is None:
            references.append(Reference(name, None, why))
            continue
        if version.number not in ranked:
            try:
                ranked[version.number] = _rank_version(paths, config, scores, tracker, version, scratch)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        found = ranked[version.number]
        # nobody can say whether a new adapter is as good as a champion of another contract: a human moves the alias
        references.append(replace(found, name=name, blocks=found.blocks or (name == CHAMPION and found.other_contract)))
    return [*_reverse_burden(references, paths), *_baselines(paths, config)]


def _rank_version(
    paths: RunPaths, config: RunConfig, scores: pl.DataFrame, tracker: Tracker, version: Version, scratch: Path
) -> Reference:
    """A version's values on this run's valid queries, or why there are none."""
    missing = Reference("", None, version=version.number)
    differs = ""
    try:
        files = download_version(tracker, version, scratch)
        contract = read_contract(files.adapter)
        examples = _valid_examples(paths, scores)
        try:
            require_same(prompt_contract(config.prompt, config.retrieve), contract)
        except ContractError as error:
            differs = str(error)
            log.info("promote: version %s ranks prompts of its own contract: %s", version.number, differs)
            examples = own_examples(paths, config, examples, version, files, contract)
        theirs = _version_scores(paths, config, examples, files.adapter)
        manifest = read_manifest(files.adapter)
    except NonFiniteError as error:
        why = f"version {version.number} can answer nothing, so it counts as none ({error})"
        log.warning("promote: %s", why)
        return replace(missing, why=why)
    except UserError as error:
        if differs:
            why = f"the contract of version {version.number} no longer fits this run's prompts ({differs}), "
            return replace(missing, why=f"{why}and its own cannot be made any more ({error})", other_contract=True)
        if isinstance(error, ContractError):
            why = f"version {version.number} no longer belongs to its base model ({error})"
            return replace(missing, why=why, other_contract=True)
        why = f"version {version.number} is kept: it could not be ranked ({error})"
        return replace(missing, why=why, blocks=True)
    warm_runs = len(manifest["facts"].get("ancestors", [])) if manifest else 0
    return Reference("", theirs, version=version.number, warm_runs=warm_runs, own_contract=bool(differs))


def _reverse_burden(references: list[Reference], paths: RunPaths) -> list[Reference]:
    """Only where a fresh adapter meets a champion that started warm do the versions have the burden of proof."""
    champion = next(one for one in references if one.name == CHAMPION)
    is_fresh = paths.manifest("finetune")["facts"].get("start") == "base"
    return [replace(one, warm_runs=champion.warm_runs if is_fresh else 0) for one in references]


def _baselines(paths: RunPaths, config: RunConfig) -> list[Reference]:
    """The retriever's order and the untuned model, as evaluate measured them."""
    evaluate = paths.require("evaluate")
    return [
        Reference(RETRIEVER, promotion_scores(evaluate, config.seed, "retriever")),
        Reference(UNTUNED, promotion_scores(evaluate, config.seed, "untuned"), sampled=True),
    ]


def _version_scores(paths: RunPaths, config: RunConfig, examples: pl.DataFrame, adapter: Path) -> pl.DataFrame:
    predictions = rank_examples(
        examples,
        adapter,
        tuned=True,
        constrained=True,
        batch_size=config.rank.batch_size,
        folder_of=paths.require,
    )
    return _measure(examples, predictions["answers"])


def _valid_examples(paths: RunPaths, scores: pl.DataFrame) -> pl.DataFrame:
    """The valid examples of the users who judge."""
    shards = shard_files(paths.require("generate") / "valid")
    return read_parquet(shards).join(scores.select("user_id"), on="user_id", how="semi")


def _measure(examples: pl.DataFrame, answers: pl.Series) -> pl.DataFrame:
    """``user_id`` and ``ndcg_at_5``, of one answer per example: users in the order of their first example."""
    metrics = score_lists(answers, examples["answers"], [PROMOTION_CUTOFF])
    return mean_over_cutoffs(examples.select("user_id").hstack(metrics.select(PROMOTION_METRIC)), ("user_id",))
