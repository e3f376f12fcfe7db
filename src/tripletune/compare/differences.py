"""What differs between runs apart from their metrics: settings, input files, and the stages' outputs with the cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tripletune.compare.runs import RunScores
from tripletune.flatten import flatten

ABSENT = "absent"
"""In place of a value that a run does not have, as a setting of a later version."""
SHOWN = 3
"""Names listed for each cause; of more, their number."""
SHORT = 10
"""Shown characters of a checksum or fingerprint, as in ``plan`` and ``show``."""
CAUSES = {
    "fields": "settings",
    "inputs": "inputs",
    "libraries": "libraries",
    "source": "code",
    "parents": "outputs of",
}
"""Ingredients of a fingerprint, and what they are called here."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that not all runs have the same."""

    name: str
    values: list[str]
    """One for each run, in the order given."""
    because: str = ""
    """Of a stage: which ingredients differ from the baseline's."""


def differing_settings(runs: Sequence[RunScores]) -> list[Difference]:
    """Settings as the runs were started with, by dotted name."""
    return _differing([run.settings() for run in runs])


def differing_inputs(runs: Sequence[RunScores]) -> list[Difference]:
    """Files from outside the store, by purpose and name, with the first characters of their SHA-256."""
    return _differing([_inputs(run) for run in runs])


def differing_stages(runs: Sequence[RunScores], first: RunScores) -> list[Difference]:
    """Stages whose outputs differ, by fingerprint, and the ingredients that differ from those of the run ``first``."""
    found = _differing([{name: value[:SHORT] for name, value in run.record.fingerprints.items()} for run in runs])
    return [Difference(one.name, one.values, _because(one.name, runs, first)) for one in found]


def difference_tables(
    settings: Sequence[Difference], inputs: Sequence[Difference], stages: Sequence[Difference]
) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Titles with rows: what is named, its value in each run, and the cause where one is known."""
    return [
        ("Settings", [(one.name, *one.values) for one in settings]),
        ("Inputs", [(one.name, *one.values) for one in inputs]),
        ("Stages", [(one.name, *one.values, one.because) for one in stages]),
    ]


def _inputs(run: RunScores) -> dict[str, str]:
    of_stages = (run.ingredients(stage).get("inputs", {}) for stage in run.record.fingerprints)
    return {name: checksum[:SHORT] for inputs in of_stages for name, checksum in inputs.items()}


def _differing(tables: Sequence[Mapping[str, Any]]) -> list[Difference]:
    names = dict.fromkeys(name for table in tables for name in table)
    rows = {name: [str(table.get(name, ABSENT)) or '""' for table in tables] for name in names}
    return [Difference(name, values) for name, values in rows.items() if len(set(values)) > 1]


def _because(stage: str, runs: Sequence[RunScores], first: RunScores) -> str:
    if not all(stage in run.record.fingerprints for run in runs):
        return "not in every run"
    before = first.ingredients(stage)
    after = [found for run in runs if run is not first and (found := run.ingredients(stage))]
    if not before or not after:
        return "an output is not on this machine"
    reasons = []
    for group, called in CAUSES.items():
        mine = flatten(before.get(group, {}))
        names = [
            name
            for theirs in (flatten(found.get(group, {})) for found in after)
            for name in mine.keys() | theirs.keys()
            if mine.get(name, ABSENT) != theirs.get(name, ABSENT)
        ]
        if names:
            reasons.append(f"{called} {_listed(set(names))}")
    return "; ".join(reasons)


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")
