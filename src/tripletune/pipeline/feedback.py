"""Which earlier run's log the selector learns from, decided when fingerprints are computed.

The log is an input of the selector: the fingerprint of that run's probe stands among the ingredients, so that the same
log and the same data give the same choice. A run whose other ingredients are those of an earlier one takes that one's
selector, log and all: nothing is learned again, and nothing after it rebuilt, before the data or settings change.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripletune.config import RunConfig
from tripletune.errors import ConfigError, MissingArtifactError
from tripletune.store.fingerprint import Ingredients, fingerprint
from tripletune.store.paths import RunPaths, read_manifest
from tripletune.store.runs import RunRecord, list_runs, read_run, shared_store

if TYPE_CHECKING:
    from tripletune.selector.log import RunLog

STAGE = "selector"
LOG = "log/probe"
"""Input of the selector: fingerprint of the probe whose log it learns from."""


def from_log(parts: Ingredients, config: RunConfig, root: Path) -> Ingredients:
    """The selector's ingredients with its log among them, or those of an earlier run's selector if this run's are the
    same but for the log.

    Raises:
        ConfigError, MissingArtifactError: ``selector.from_run`` names no usable run.
    """
    if config.selector.from_run:
        return _with_log(parts, _named_log(config, root))
    completed = [
        run for run in reversed(list_runs(root)) if run.dataset == config.dataset and run.status == "completed"
    ]
    for run in completed:
        manifest = read_manifest(root / run.dataset / STAGE / run.fingerprints.get(STAGE, "none"))
        own: Ingredients | None = manifest["ingredients"] if manifest else None
        if own and fingerprint(STAGE, _without_log(own)) == fingerprint(STAGE, parts):
            return own
    found = next((run.fingerprints["probe"] for run in completed if _has_log(run, root)), "")
    return _with_log(parts, found)


def resolved_log(paths: RunPaths) -> RunLog | None:
    """Folders of the log that the run's fingerprint of the selector names; None: it names none.

    Raises:
        MissingArtifactError: they are gone.
    """
    from tripletune.selector.log import RunLog

    name = paths.ingredients.get(STAGE, {}).get("inputs", {}).get(LOG, "")
    if not name:
        return None
    folders = _folders(name, paths.root, paths.dataset, paths.shared)
    return RunLog(**folders)


def _with_log(parts: Ingredients, probe: str) -> Ingredients:
    return {**parts, "inputs": {**parts["inputs"], LOG: probe}} if probe else parts


def _without_log(parts: Ingredients) -> Ingredients:
    return {**parts, "inputs": {name: value for name, value in parts["inputs"].items() if name != LOG}}


def _has_log(run: RunRecord, root: Path) -> bool:
    """Whether a run has probed training prompts, and its files are here."""
    if "probe" not in run.stages or not _probes_training(run):
        return False
    try:
        _folders(run.fingerprints["probe"], root, run.dataset, "")
    except MissingArtifactError:
        return False
    return True


def _probes_training(run: RunRecord) -> bool:
    probe: dict[str, Any] = run.config.get("probe", {})
    return bool(probe.get("users")) and "train" in probe.get("purposes", ())


def _named_log(config: RunConfig, root: Path) -> str:
    name = config.selector.from_run
    run = read_run(root, name, store=config.store)
    if run.dataset != config.dataset:
        raise ConfigError(
            f"selector.from_run = {name!r} is a run of dataset {run.dataset!r}, not of {config.dataset!r}; name a run "
            "of the same dataset"
        )
    if "probe" not in run.fingerprints or not _probes_training(run):
        raise ConfigError(
            f"selector.from_run = {name!r} has not probed training prompts; name a run with probe.users above 0 and "
            "'train' among probe.purposes"
        )
    _folders(run.fingerprints["probe"], root, run.dataset, shared_store(config.store))
    return run.fingerprints["probe"]


def _folders(probe: str, root: Path, dataset: str, shared: str) -> dict[str, Path]:
    """Folders of a probe and of the stages whose output its log is about, by the manifests' own words."""
    known = {"probe": probe}
    for stage, parents in (("probe", ("generate", "split")), ("generate", ("retrieve",))):
        paths = RunPaths(root=root, dataset=dataset, fingerprints=known, shared=shared)
        if not paths.is_done(stage):
            raise MissingArtifactError(
                f"the selector's log is of the {stage} output {paths.folder(stage)}, which is gone; name another run "
                "in selector.from_run"
            )
        known |= {parent: paths.manifest(stage)["parents"][parent] for parent in parents}
    paths = RunPaths(root=root, dataset=dataset, fingerprints=known, shared=shared)
    for stage in ("retrieve", "split"):
        if not paths.is_done(stage):
            raise MissingArtifactError(
                f"the selector's log needs the {stage} output {paths.folder(stage)}, which is gone; name another run "
                "in selector.from_run"
            )
    return {stage: paths.folder(stage) for stage in ("probe", "generate", "retrieve", "split")}
