"""Promotion: this run's adapter against the champion, both on this run's valid prompts.

The champion is ranked again, because its old figures belong to other prompts. The alias moves only when the new one
is not worse by more than a margin; a champion whose contract no longer fits these prompts is kept. Where there is no
champion, or its weights are not finite, the adapter is compared with the retriever's order and the untuned model
(``promote.decision`` has the rules).
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import polars as pl

from tripletune.config import RunConfig
from tripletune.contract import read_contract, require_same
from tripletune.errors import ContractError, NonFiniteError, UserError
from tripletune.evaluate.metrics import PROMOTION_METRIC, mean_over_cutoffs, score_lists
from tripletune.ndcg import PROMOTION_CUTOFF
from tripletune.promote.decision import PromotionDecision, decide_promotion, promotion_scores
from tripletune.promote.fresh import decide_against_chain
from tripletune.prompts.engine import prompt_contract
from tripletune.rank.predict import rank_examples
from tripletune.store.champion import DECISION, model_name
from tripletune.store.files import write_json
from tripletune.store.paths import SCRATCH, RunPaths, read_manifest
from tripletune.store.shards import shard_files
from tripletune.tracking import Champion, StageRun, download_champion, find_champion, promote_adapter

PER_VIEWER = "per_viewer.parquet"
"""File of the evaluate stage with each user's values."""

log = logging.getLogger(__name__)


def promote_or_keep(paths: RunPaths, config: RunConfig, *, run: str, child: StageRun) -> Path:
    """Compare, decide, move the alias or not, and write ``decision.json``.

    Args:
        paths: outputs of the run whose adapter asks to be promoted.
        config: settings; ``promote`` holds model name, margin and confidence.
        run: name of the run; names the decision's folder.
        child: MLflow run of this stage; holds the files of a promoted adapter.

    Returns:
        ``<root>/<dataset>/promote/<run>``.
    """
    folder = paths.root / paths.dataset / "promote" / run
    folder.mkdir(parents=True, exist_ok=True)
    model, fingerprint = model_name(config), paths.fingerprints["finetune"]
    adapter, scores = (
        paths.require("finetune"),
        promotion_scores(paths.require("evaluate") / PER_VIEWER, config.seed),
    )
    current = find_champion(child.tracker, model)
    if current is None:
        decision = _decide(paths, config, scores, None)
    elif current.fingerprint in (fingerprint, paths.manifest("finetune")["facts"].get("same_as")):
        decision = PromotionDecision(False, "this adapter is the champion already", 0.0, 0.0, scores.height)
    else:
        decision = _compare(paths, config, scores, child, current, folder / SCRATCH)
    version = ""
    if decision.promote:
        tags = {"fingerprint": fingerprint, "dataset": paths.dataset, "run": run, "decision": decision.reason}
        version = promote_adapter(child.tracker, child, model, adapter, tags)
    write_json(
        folder / DECISION,
        {
            **asdict(decision),
            "model": model,
            "adapter": fingerprint,
            "champion_before": current and current.fingerprint,
            "version": version,
        },
    )
    log.info("promote: %s: %s", "promoted" if decision.promote else "not promoted", decision.reason)
    child.log_decision(decision.reason, decision.difference, decision.lower_bound)
    return folder


def _compare(
    paths: RunPaths, config: RunConfig, scores: pl.DataFrame, child: StageRun, champion: Champion, scratch: Path
) -> PromotionDecision:
    try:
        folder = download_champion(child.tracker, champion, scratch)
        require_same(prompt_contract(config.prompt, config.retrieve), read_contract(folder))
        theirs = _champion_scores(paths, config, scores, folder)
        manifest = read_manifest(folder)
        warm_runs = len(manifest["facts"].get("ancestors", [])) if manifest else 0
    except ContractError as error:
        reason = f"version {champion.version} is kept: its contract no longer fits this run's prompts ({error})"
        return PromotionDecision(False, reason, None, None, 0)
    except NonFiniteError as error:
        log.warning("promote: version %s can answer nothing, so it counts as no champion: %s", champion.version, error)
        theirs, warm_runs = None, 0
    except UserError as error:
        reason = f"version {champion.version} is kept: it could not be ranked ({error})"
        return PromotionDecision(False, reason, None, None, 0)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    decision = _decide(paths, config, scores, theirs)
    if theirs is None or not warm_runs or paths.manifest("finetune")["facts"].get("start") != "base":
        return decision
    return decide_against_chain(
        decision,
        scores,
        theirs,
        warm_runs,
        confidence=config.promote.confidence,
        resamples=config.evaluate.bootstrap_resamples,
        seed=config.seed,
    )


def _decide(paths: RunPaths, config: RunConfig, scores: pl.DataFrame, theirs: pl.DataFrame | None) -> PromotionDecision:
    measured = paths.require("evaluate") / PER_VIEWER
    return decide_promotion(
        scores,
        theirs,
        margin=config.promote.margin,
        confidence=config.promote.confidence,
        resamples=config.evaluate.bootstrap_resamples,
        seed=config.seed,
        baselines=[
            ("the retriever's order", promotion_scores(measured, config.seed, ("retriever",))),
            ("the untuned model", promotion_scores(measured, config.seed, ("untuned",))),
        ],
    )


def _champion_scores(paths: RunPaths, config: RunConfig, scores: pl.DataFrame, champion: Path) -> pl.DataFrame:
    examples = _valid_examples(paths, scores)
    predictions = rank_examples(
        examples,
        champion,
        tuned=True,
        constrained=True,
        batch_size=config.rank.batch_size,
        folder_of=paths.require,
    )
    return _measure(examples, predictions["answers"])


def _valid_examples(paths: RunPaths, scores: pl.DataFrame) -> pl.DataFrame:
    """The valid examples of the users that were ranked."""
    shards = shard_files(paths.require("generate") / "valid")
    return pl.read_parquet(shards).join(scores.select("user_id"), on="user_id", how="semi")


def _measure(examples: pl.DataFrame, answers: pl.Series) -> pl.DataFrame:
    """``user_id`` and ``ndcg_at_5``, of one answer per example: users in the order of their first example."""
    metrics = score_lists(answers, examples["answers"], [PROMOTION_CUTOFF])
    return mean_over_cutoffs(examples.select("user_id").hstack(metrics.select(PROMOTION_METRIC)), ("user_id",))
