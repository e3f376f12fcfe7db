"""Which model answers a recommendation, and which run's trained models make its prompts.

By default the champion of the registry answers, on the newest run whose prompts have its contract. A run that is named
answers with its own model, and so does the newest run where there is no champion yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tripletune.config import RunConfig
from tripletune.contract import AdapterContract, read_contract, require_same
from tripletune.errors import ContractError, UserError
from tripletune.prompts.engine import prompt_contract
from tripletune.serve.layout import require_whole
from tripletune.serve.run_prompts import RunPrompts
from tripletune.store.champion import model_name
from tripletune.store.paths import RunPaths, read_manifest
from tripletune.store.runs import RunRecord, list_runs, read_run
from tripletune.tracking import Tracker, open_registry
from tripletune.versions import Version, download_version, find_version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """Who answers."""

    record: RunRecord
    """The run whose trained models retrieve and whose settings write the prompts."""
    paths: RunPaths
    config: RunConfig
    adapter: Path
    """Finetuned folder."""
    version: Version | None
    """Of the registry; None: the run's own adapter."""
    why_own: str = ""
    """Why it is the run's own where it is."""

    def described(self) -> dict[str, str]:
        """Model, version and runs, by name; the same for the same answers."""
        own = self.version is None
        fingerprint = self.paths.fingerprints["finetune"] if self.version is None else self.version.fingerprint
        return {
            "model": "" if own else model_name(self.config),
            "version": "" if self.version is None else self.version.number,
            "model_run": self.record.name if self.version is None else self.version.run,
            "adapter": fingerprint,
            "run": self.record.name,
        }

    def sentence(self) -> str:
        """The same for people."""
        if self.version is None:
            return f"answered by the model of run {self.record.name} ({self.why_own})"
        by = f"answered by {model_name(self.config)} version {self.version.number}, the champion"
        by += f", of run {self.version.run}" if self.version.run else ""
        return f"{by}; retrieved by the models of run {self.record.name}"


@contextmanager
def answering(root: Path, run: str = "") -> Iterator[Answering]:
    """Find out who answers; files of a version that have to be fetched are gone at the end.

    Args:
        root: the artifact root.
        run: whose own model is to answer; empty: the champion.

    Raises:
        MissingArtifactError: there is no such run, or none with an adapter; or the champion's files are gone.
        InputError: a file of the champion is damaged.
        ContractError: no run here has prompts of the champion's contract.
    """
    record = read_run(root, run, needs="finetune")
    paths, config = record.paths(root), record.settings()
    version, why = None, "named by --run"
    if not run:
        tracker = open_registry(config.tracking, root)
        version, why = find_version(tracker, model_name(config)), f"{model_name(config)} has no champion yet"
    if version is None:
        adapter = paths.require("finetune")
        require_same(prompt_contract(config.prompt, config.retrieve), read_contract(adapter))
        RunPrompts(paths, config).require()
        yield Answering(record=record, paths=paths, config=config, adapter=adapter, version=None, why_own=why)
        return
    with TemporaryDirectory(prefix="tripletune-champion-") as scratch:
        adapter = _adapter_of(version, paths, tracker, Path(scratch))
        require_whole(adapter)
        fitting = _fitting_run(root, record.dataset, read_contract(adapter), version)
        yield Answering(
            record=fitting,
            paths=fitting.paths(root),
            config=fitting.settings(),
            adapter=adapter,
            version=version,
        )


def _adapter_of(version: Version, paths: RunPaths, tracker: Tracker, scratch: Path) -> Path:
    """A version's adapter: the output that it was made of where it is here, else its files in the registry."""
    here = paths.root / paths.dataset / "finetune" / version.fingerprint
    if version.fingerprint and read_manifest(here) is not None:
        return here
    log.info("recommend: fetching version %s from the registry", version.number)
    return download_version(tracker, version, scratch / "version").adapter


def _fitting_run(root: Path, dataset: str, contract: AdapterContract, version: Version) -> RunRecord:
    """The newest run whose prompts have a contract, and whose models are here."""
    reason = ""
    for record in reversed(list_runs(root)):
        if record.dataset != dataset:
            continue
        try:
            config = record.settings()
            require_same(prompt_contract(config.prompt, config.retrieve), contract)
            RunPrompts(record.paths(root), config).require()
        except UserError as error:
            reason = reason or f"{record.name}: {error}"
            continue
        return record
    raise ContractError(
        f"version {version.number} is the champion, and no run here makes its prompts ({reason}); name a run whose own "
        "model answers with --run, or serve another version: tripletune rollback"
    )
