"""Which earlier run's specialists a run reuses: one that is named, or the newest that is young enough."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from tripletune.config import BASELINES, RETRIEVERS, RunConfig
from tripletune.errors import ConfigError, MissingArtifactError
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, list_runs, read_run, shared_store

log = logging.getLogger(__name__)

_SETTINGS = ("seed", "split", "knowledge", "retrieve.retriever", "models")
"""Settings besides the models' own that decide what is trained."""


def pinned_specialists(config: RunConfig, artifacts: Path) -> dict[str, str]:
    """Fingerprints of the specialists that are taken from an earlier run, by stage; empty: all are of this run's input.

    Raises:
        ConfigError, MissingArtifactError: ``specialists.pin`` names no usable run.
    """
    if config.specialists.pin:
        return _named(config, artifacts)
    if config.specialists.every_days:
        return _young(config, artifacts)
    return {}


def _named(config: RunConfig, artifacts: Path) -> dict[str, str]:
    run = read_run(artifacts, config.specialists.pin, store=config.store)
    if run.dataset != config.dataset:
        raise ConfigError(
            f"specialists.pin = {run.name!r} is a run of dataset {run.dataset!r}, not of {config.dataset!r}; "
            "name a run of the same dataset"
        )
    chosen = [name for name in RETRIEVERS if name not in ("lightgcn", *BASELINES)]
    untrained = [stage for stage in config.specialist_stages if stage not in run.fingerprints]
    if untrained:
        other = "set retrieve.retriever = 'ease' or 'lightgcn', " if untrained[0] in chosen else ""
        raise ConfigError(
            f"specialists.pin = {run.name!r}, but that run has no {untrained[0]}, which this run reads; "
            f"pin a run that has, {other}or remove the pin for one run"
        )
    kept = _outputs(run, config, artifacts)
    for stage in kept.fingerprints:
        if not kept.is_done(stage):
            raise MissingArtifactError(
                f"specialists.pin = {run.name!r}, but its {stage} output is gone from {kept.folder(stage)}; "
                "pin a run whose specialists are there, or remove the pin"
            )
    return dict(kept.fingerprints)


def _outputs(run: RunRecord, config: RunConfig, artifacts: Path) -> RunPaths:
    pinned = {stage: run.fingerprints[stage] for stage in config.specialist_stages}
    return RunPaths(root=artifacts, dataset=run.dataset, fingerprints=pinned, shared=shared_store(config.store))


def _young(config: RunConfig, artifacts: Path) -> dict[str, str]:
    """Those of the newest run that trained them less than ``specialists.every_days`` ago."""
    today = config.ingest.as_of or datetime.now(UTC).date()
    runs = [run for run in list_runs(artifacts) if _fits(run, config, today)]
    for run in sorted(runs, key=lambda one: (_day(one), one.started, one.name), reverse=True):
        kept = _outputs(run, config, artifacts)
        trained = min(_day(one) for one in runs if _outputs(one, config, artifacts).fingerprints == kept.fingerprints)
        age = (today - trained).days
        if age < config.specialists.every_days and all(kept.is_done(stage) for stage in kept.fingerprints):
            log.info(
                "specialists of %s, trained on %s, are kept: specialists.every_days = %s",
                *(run.name, trained, config.specialists.every_days),
            )
            return dict(kept.fingerprints)
    return {}


def _fits(run: RunRecord, config: RunConfig, today: date) -> bool:
    """Whether a run's specialists are those this run would train, on ratings that were there on its day."""
    of_one_kind = run.dataset == config.dataset and run.status == "completed"
    has_all = all(stage in run.fingerprints for stage in config.specialist_stages)
    if not (of_one_kind and has_all and bool(run.as_of) == bool(config.ingest.as_of) and _day(run) <= today):
        return False
    return all(_setting(run.config, name) == _setting(config.model_dump(mode="json"), name) for name in _names(config))


def _names(config: RunConfig) -> Sequence[str]:
    sections = RunConfig.model_fields
    return [*_SETTINGS, *(stage for stage in config.specialist_stages if stage in sections)]


def _setting(config: dict[str, object], dotted: str) -> object:
    value: object = config
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _day(run: RunRecord) -> date:
    """The day that a run stands for: the one it is as of, or the one on which it began."""
    return date.fromisoformat(run.as_of or run.started[:10])
