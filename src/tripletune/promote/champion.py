"""Promotion: tonight's adapter against the champion, both on tonight's valid prompts.

The champion is ranked anew, because its old figures belong to other prompts. The alias moves only when tonight is not
worse by more than a margin; a champion whose contract no longer fits these prompts is reported and kept.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import polars as pl

from tripletune.config import RunConfig
from tripletune.contract import read_contract, require_same
from tripletune.errors import ContractError, UserError
from tripletune.evaluate.metrics import score_lists
from tripletune.promote.decision import PromotionDecision, decide_promotion, promotion_scores
from tripletune.prompts.engine import prompt_contract
from tripletune.rank.predict import rank_examples
from tripletune.store.files import write_json
from tripletune.store.paths import SCRATCH, RunPaths
from tripletune.tracking import Champion, StageRun, download_champion, find_champion, promote_adapter

CUTOFF = 5


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
    model, tonight = model_name(config), paths.fingerprints["finetune"]
    adapter, scores = paths.require("finetune"), promotion_scores(paths.require("evaluate") / "per_viewer.parquet")
    current = find_champion(child.tracker, model)
    if current is None:
        decision = _decide(config, scores, None)
    elif current.fingerprint == tonight:
        decision = PromotionDecision(False, "tonight's adapter is the champion already", 0.0, 0.0, scores.height)
    else:
        decision = _compare(paths, config, scores, child, current, folder / SCRATCH)
    version = ""
    if decision.promote:
        tags = {"fingerprint": tonight, "dataset": paths.dataset, "run": run, "decision": decision.reason}
        version = promote_adapter(child.tracker, child, model, adapter, tags)
    write_json(
        folder / "decision.json",
        {
            **asdict(decision),
            "model": model,
            "adapter": tonight,
            "champion_before": current and current.fingerprint,
            "version": version,
        },
    )
    child.log_decision(decision.reason, decision.difference, decision.lower_bound)
    return folder


def model_name(config: RunConfig) -> str:
    """Name in the registry; adapters of two datasets never compete."""
    return config.promote.registered_model or f"tripletune-{config.dataset}"


def _compare(
    paths: RunPaths, config: RunConfig, scores: pl.DataFrame, child: StageRun, champion: Champion, scratch: Path
) -> PromotionDecision:
    try:
        folder = download_champion(child.tracker, champion, scratch)
        require_same(prompt_contract(config.prompt, config.retrieve), read_contract(folder))
        theirs = _champion_scores(paths, config, scores, folder)
    except ContractError as error:
        reason = f"version {champion.version} is kept: its contract no longer fits tonight's prompts ({error})"
        return PromotionDecision(False, reason, None, None, 0)
    except UserError as error:
        reason = f"version {champion.version} is kept: it could not be ranked tonight ({error})"
        return PromotionDecision(False, reason, None, None, 0)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _decide(config, scores, theirs)


def _decide(config: RunConfig, scores: pl.DataFrame, theirs: pl.DataFrame | None) -> PromotionDecision:
    return decide_promotion(
        scores,
        theirs,
        margin=config.promote.margin,
        confidence=config.promote.confidence,
        resamples=config.evaluate.bootstrap_resamples,
        seed=config.seed,
    )


def _champion_scores(paths: RunPaths, config: RunConfig, scores: pl.DataFrame, champion: Path) -> pl.DataFrame:
    shards = sorted((paths.require("generate") / "valid").glob("*.parquet"))
    examples = pl.read_parquet(shards).join(scores.select("user_id"), on="user_id", how="semi")
    predictions = rank_examples(examples, champion, tuned=True, constrained=True, batch_size=config.rank.batch_size)
    both = predictions.join(examples.select("user_id", relevant="answers"), on="user_id", validate="1:1")
    metrics = score_lists(both["answers"], both["relevant"], [CUTOFF])
    return both.select("user_id").hstack(metrics.select(f"ndcg_at_{CUTOFF}"))
