"""Promotion: move the champion alias to this run's adapter, or give the reason why not.

``promote.references`` gathers what the adapter is compared with, ``promote.decision`` decides from the values alone;
here the registry is asked and changed, and the decision is recorded with all its numbers.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tripletune.config import RunConfig
from tripletune.evaluate.metrics import PROMOTION_METRIC
from tripletune.promote.decision import Comparison, PromotionDecision, Rule, decide_promotion, promotion_scores
from tripletune.promote.pages import write_decision_page
from tripletune.promote.references import Versions, find_versions, gather_references
from tripletune.store.champion import DECISION, model_name
from tripletune.store.files import write_json
from tripletune.store.paths import SCRATCH, RunPaths
from tripletune.store.read import scan_parquet
from tripletune.store.runs import utc_now
from tripletune.store.shards import shard_files
from tripletune.tracking import StageRun, Tracker
from tripletune.versions import Entry, register_version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judged:
    """A decision and the versions that it compared with."""

    decision: PromotionDecision
    versions: Versions

    def record(self, config: RunConfig, adapter: str, version: str) -> dict[str, Any]:
        """The decision as it is written: all numbers of each comparison, and what the registry held before it.

        Args:
            config: names the model.
            adapter: fingerprint of the adapter that asked.
            version: that it became; empty: none.
        """
        champion, best = self.versions.champion, self.versions.best
        return {
            **asdict(self.decision),
            "model": model_name(config),
            "adapter": adapter,
            "champion_before": champion and champion.fingerprint,
            "best_before": best and best.fingerprint,
            "version": version,
        }


def judge(paths: RunPaths, config: RunConfig, tracker: Tracker, scratch: Path) -> Judged:
    """Compare this run's adapter with what it must not be worse than, and decide; the registry is only read.

    Args:
        paths: outputs of the run whose adapter asks to be promoted.
        config: settings; ``promote`` holds the rule.
        tracker: the store with the registry.
        scratch: folder for earlier versions' files; gone afterwards.
    """
    scores = promotion_scores(paths.require("evaluate"), config.seed)
    versions = find_versions(tracker, model_name(config), config.promote.earlier_days)
    own = (paths.fingerprints["finetune"], paths.manifest("finetune")["facts"].get("same_as"))
    if versions.champion and versions.champion.fingerprint in own:
        same = PromotionDecision(False, "this adapter is the champion already", num_viewers=scores.height)
        return Judged(same, versions)
    if back := next((one for one in versions.rolled_back if one.fingerprint in own), None):
        reason = f"this adapter was rolled back as version {back.number}; train another one, or serve it again: "
        reason += f"tripletune rollback --to {back.number}"
        return Judged(PromotionDecision(False, reason, num_viewers=scores.height), versions)
    rule = Rule(
        config.promote.relative_margin,
        config.promote.confidence,
        config.promote.min_users,
        config.evaluate.bootstrap_resamples,
        config.seed,
    )
    references = gather_references(paths, config, scores, tracker, versions, scratch)
    return Judged(decide_promotion(scores, references, rule), versions)


def promote_or_keep(paths: RunPaths, config: RunConfig, *, run: str, child: StageRun) -> Path:
    """Compare, decide, move the aliases or not, and write ``decision.json`` and ``decision.html``.

    Args:
        paths: outputs of the run whose adapter asks to be promoted.
        config: settings; ``promote`` holds model name and rule.
        run: name of the run; names the decision's folder.
        child: MLflow run of this stage, to which a new version belongs.

    Returns:
        ``<root>/<dataset>/promote/<run>``.
    """
    folder = paths.root / paths.dataset / "promote" / run
    folder.mkdir(parents=True, exist_ok=True)
    judged = judge(paths, config, child.tracker, folder / SCRATCH)
    decision, version = judged.decision, ""
    if decision.promote:
        best = "" if decision.is_best or judged.versions.best is None else judged.versions.best.number
        entry = _entry(paths, config, decision, run, child)
        try:
            version = register_version(child, entry, _version_files(paths, config, folder / SCRATCH), best=best)
        finally:
            shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    record = judged.record(config, paths.fingerprints["finetune"], version) | {"decided": utc_now(), "run": run}
    write_json(folder / DECISION, record)
    page = write_decision_page(folder, record)
    for one in decision.comparisons:
        log.info("promote: %s: %s: %s", one.name, one.verdict, one.reason)
    log.info("promote: %s: %s", "promoted" if decision.promote else "not promoted", decision.reason)
    child.log_decision(decision.reason, _numbers(decision), [folder / DECISION, page])
    return folder


def _version_files(paths: RunPaths, config: RunConfig, scratch: Path) -> Path:
    """The files of a new version, in a folder below ``scratch``."""
    from tripletune.serve.package import save_version  # imports MLflow's models, which take a second

    shutil.rmtree(scratch, ignore_errors=True)  # of a killed run
    scratch.mkdir(parents=True)
    example = scan_parquet(shard_files(paths.require("generate") / "valid")).head(1).collect()
    source = config.finetune.behaviour_tokens
    films = paths.require(source) if config.finetune.has_behaviour else None
    save_version(scratch / "version", paths.require("finetune"), config, example, films)
    return scratch / "version"


def _entry(paths: RunPaths, config: RunConfig, decision: PromotionDecision, run: str, child: StageRun) -> Entry:
    """What the registry's page says of a new version."""
    fingerprint, model = paths.fingerprints["finetune"], model_name(config)
    metrics = {"valid_users": float(decision.num_viewers)}
    if decision.value is not None:
        metrics[f"valid_{PROMOTION_METRIC}"] = decision.value
    measured = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    description = (
        f"Adapter {fingerprint} of run {run} (MLflow run {child.tracker.parent_run_id}) on {paths.dataset}: base model "
        f"{config.finetune.model}, objective {config.finetune.objective}, template {config.prompt.template}, retriever "
        f"{config.retrieve.retriever}. {measured}. {decision.reason}.\n\n"
        f'It answers prompts: mlflow.pyfunc.load_model("models:/{model}@champion").predict(rows of the shards).'
    )
    named = {"fingerprint": fingerprint, "dataset": paths.dataset, "run": run}
    tags = {**named, "parent_run": child.tracker.parent_run_id, **_tags(decision)}
    return Entry(model=model, description=description[:5000], tags=tags, metrics=metrics)


def preview(paths: RunPaths, config: RunConfig, tracker: Tracker) -> dict[str, Any]:
    """What promotion would decide now, as ``decision.json`` would have it; nothing is written or moved.

    Args:
        paths, config: as in ``promote_or_keep``.
        tracker: the store with the registry.
    """
    with TemporaryDirectory(prefix="tripletune-promote-") as scratch:
        judged = judge(paths, config, tracker, Path(scratch) / SCRATCH)
    return judged.record(config, paths.fingerprints["finetune"], "")


def _tags(decision: PromotionDecision) -> dict[str, str]:
    """What a version says of its promotion."""
    value = {} if decision.value is None else {f"valid_{PROMOTION_METRIC}": f"{decision.value:.4f}"}
    return {
        "decision": decision.reason[:4000],
        **value,
        "valid_users": str(decision.num_viewers),
        **{f"gate.{one.name}": f"{one.verdict}: {one.reason}"[:4000] for one in decision.comparisons},
    }


def _numbers(decision: PromotionDecision) -> dict[str, float | None]:
    """Metrics of a decision, by name."""

    def of(one: Comparison) -> dict[str, float | None]:
        return {f"{one.name}_difference": one.difference, f"{one.name}_lower_bound": one.lower_bound}

    return {key: value for one in decision.comparisons for key, value in of(one).items()}
