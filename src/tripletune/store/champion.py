"""The champion of a dataset as its promotions left it, read from their decisions in the store.

The registry's alias is the authority on what is served, but asking it needs a server, and fingerprints are computed
without one. Each promotion notes what the alias was and whether it moved it; an alias moved by hand is therefore seen
from the next promotion on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tripletune.config import RunConfig
from tripletune.store.files import write_json
from tripletune.store.runs import list_runs

PROMOTE = "promote"
DECISION = "decision.json"
ROLLBACKS = "rollbacks"
"""Folder next to those of the runs' decisions."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A champion, and what later promotions say of it."""

    fingerprint: str
    """Of the finetune output that it is."""
    run: str
    """That promoted it; empty where no run of the store did."""
    beat_fresh: bool
    """Whether an adapter that was trained from the base model was compared with it and refused, as clearly worse."""


def model_name(config: RunConfig) -> str:
    """Name in the registry; adapters of two datasets never compete."""
    return config.promote.registered_model or f"tripletune-{config.dataset}"


def standing_champion(root: Path, dataset: str, model: str) -> Standing | None:
    """The champion after the newest promotion; None: there was none, or none was promoted.

    Args:
        root: the artifact root.
        dataset: of the runs.
        model: name in the registry.
    """
    champion, beat_fresh = None, False
    for run, decision in _steps(root, dataset, model):
        after = decision["adapter"] if decision["promote"] else decision["champion_before"]
        champion = after if champion is None else champion
        if champion is None:
            return None
        if after != champion:  # another one's time: the alias was moved by hand since
            break
        beat_fresh |= bool(decision.get("kept_against_fresh", False))
        if decision["promote"]:
            return Standing(champion, run, beat_fresh)
    return None if champion is None else Standing(champion, "", beat_fresh)


def _steps(root: Path, dataset: str, model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run and decision of each promotion and rollback of this model, newest first; of a rollback the run that had
    promoted the version that serves again."""
    steps = []
    for record in list_runs(root):
        if record.dataset == dataset:
            decision = read_decision(root, dataset, record.name)
            if decision.get("model") == model:
                steps.append((decision.get("decided", record.started), record.name, decision))
    for path in sorted((root / dataset / PROMOTE / ROLLBACKS).glob("*.json")):
        step = _read(path)
        if step.get("model") == model:
            steps.append((step["decided"], step["run"], step))
    # of one second the later in the list came later: runs by name, then rollbacks, which take back what is there
    by_time = sorted(enumerate(steps), key=lambda step: (step[1][0], step[0]), reverse=True)
    for _, (_, run, decision) in by_time:
        yield run, decision


def write_rollback(folder: Path, step: dict[str, Any]) -> Path:
    """Note a rollback below the decisions of a dataset; returns the file.

    Args:
        folder: of the decisions, ``<root>/<dataset>/promote``.
        step: with ``model``, ``from`` and ``to`` (versions), ``adapter`` and ``champion_before`` (fingerprints),
            ``run`` and ``decided``.
    """
    below = folder / ROLLBACKS
    below.mkdir(parents=True, exist_ok=True)
    path = below / f"{step['decided'].replace(':', '')}-{step['from']}-{step['to']}.json"
    write_json(path, {**step, "promote": True})
    return path


def read_decision(root: Path, dataset: str, run: str) -> dict[str, Any]:
    """A run's promotion decision as it was written; empty where it has made none."""
    return _read(root / dataset / PROMOTE / run / DECISION)


def standing_outputs(root: Path) -> set[Path]:
    """The finetune outputs that are champions, of every dataset and model of a store."""
    decided = {(path.parents[2].name, _read(path).get("model", "")) for path in root.glob(f"*/{PROMOTE}/*/{DECISION}")}
    found = ((dataset, standing_champion(root, dataset, model)) for dataset, model in sorted(decided))
    return {root / dataset / "finetune" / one.fingerprint for dataset, one in found if one}


def _read(path: Path) -> dict[str, Any]:
    try:
        decision: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return decision if {"promote", "adapter", "champion_before"} <= decision.keys() else {}
    except (OSError, ValueError, AttributeError):  # of a run that has not promoted, or was killed as it did
        return {}
