"""Run a set: each member once, none of its outputs twice, one failure without the others.

What is finished is known from the run files, so a set that was killed is started again by the same command: members
that have finished are not repeated, and the one that was at work goes on from its outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tripletune.ablate.plan import Plan, Planned
from tripletune.errors import UserError
from tripletune.store.fingerprint import sha256_file
from tripletune.store.paths import MANIFEST, read_manifest
from tripletune.store.runs import RunRecord, list_runs, read_run

log = logging.getLogger(__name__)

SET, MEMBER, ID = "ablation.set", "ablation.member", "ablation.id"
"""Tags of a member's run, in its file and in MLflow."""

RunMember = Callable[[Planned, Mapping[str, str]], str]
"""Run the stages of a member but ``runs.ASIDE``, with these tags, and return the run's name."""
Digests = dict[tuple[str, str], str]
"""SHA-256 of the manifest, by stage and fingerprint."""


class MemberFailed(UserError):
    """Members of a set failed; the others were run and compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a member ended."""

    planned: Planned
    state: Literal["ran", "finished before", "same run", "failed"]
    run: str = ""
    """Name of its run; of ``same run`` that of another member with the same outputs. Empty where none began."""
    error: str = ""
    stages: dict[str, str] = field(default_factory=dict)
    """``made`` or ``reused`` by stage, as its run's file has it; empty where it has no run of its own."""
    seconds: float = 0.0
    """Time of the stages it made, from their manifests."""

    def count(self, how: str) -> int:
        """Number of its stages that were ``made`` or ``reused``."""
        return sum(state == how for state in self.stages.values())


def run_set(plan: Plan, run_member: RunMember, tags: Mapping[str, str]) -> list[Outcome]:
    """Run every member that has not finished, and say how each ended.

    Args:
        plan: the set.
        run_member: runs one.
        tags: further tags of every member's run, such as the parent run in MLflow.

    Raises:
        RuntimeError: an output that was there was made again: two runs would be compared that differ in more than what
            the member changes.
    """
    outcomes: list[Outcome] = []
    seen: Digests = {}
    for one in plan.members:
        _remember(seen, one)
        outcome = _known(one, plan, outcomes) or _run_one(one, plan, run_member, tags)
        outcomes.append(outcome)
        _refuse_made_again(seen, one)
        log.info(
            "ablation %s: %s %s%s", plan.name, one.name, outcome.state, f" ({outcome.error})" if outcome.error else ""
        )
    return outcomes


def _known(one: Planned, plan: Plan, outcomes: list[Outcome]) -> Outcome | None:
    """The outcome of a member that needs no run: its run has finished, or another member's has the same outputs."""
    for other in outcomes:
        if other.planned.paths.fingerprints == one.paths.fingerprints and other.state != "failed":
            return Outcome(planned=one, state="same run", run=other.run)
    record = finished_run(one, plan)
    return _of_record(one, record, "finished before") if record else None


def _of_record(one: Planned, record: RunRecord, state: Literal["ran", "finished before"]) -> Outcome:
    made = (one.paths.folder(stage) for stage, how in record.stages.items() if how == "made")
    seconds = sum(manifest["seconds"] for folder in made if (manifest := read_manifest(folder)))
    return Outcome(planned=one, state=state, run=record.name, stages=dict(record.stages), seconds=seconds)


def finished_run(one: Planned, plan: Plan) -> RunRecord | None:
    """The completed run of a member with these very outputs, where they are still there."""
    for record in reversed(list_runs(one.paths.root)):
        is_it = record.status == "completed" and record.tags.get(SET) == plan.name
        is_it = is_it and record.tags.get(MEMBER) == one.name and record.fingerprints == dict(one.paths.fingerprints)
        if is_it and one.paths.is_here("evaluate") and one.paths.is_here("generate"):
            return record
    return None


def _run_one(one: Planned, plan: Plan, run_member: RunMember, tags: Mapping[str, str]) -> Outcome:
    belongs = {**tags, SET: plan.name, MEMBER: one.name, ID: plan.id}
    try:
        run = run_member(one, belongs)
    except Exception as error:  # whatever it is, the other members may pass; it is said at the end
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if not isinstance(error, UserError):
            log.exception("ablation %s: %s", plan.name, one.name)
        begun = begun_run(plan, one.name)
        return Outcome(planned=one, state="failed", run=begun.name if begun else "", error=reason)
    return _of_record(one, read_run(one.paths.root, run), "ran")


def begun_run(plan: Plan, member: str = "") -> RunRecord | None:
    """The newest run of a member of this very set, of any member where none is named; None where none has begun."""
    tags = {ID: plan.id, **({MEMBER: member} if member else {})}
    mine = [record for record in list_runs(plan.base.paths.root) if tags.items() <= record.tags.items()]
    return mine[-1] if mine else None


def _remember(seen: Digests, one: Planned) -> None:
    """Note every output of a member that is there."""
    for stage, output in one.outputs.items():
        if output not in seen and (digest := _digest(one.paths.folder(stage))):
            seen[output] = digest


def _digest(folder: Path) -> str:
    return sha256_file(folder / MANIFEST) if read_manifest(folder) else ""


def _refuse_made_again(seen: Digests, one: Planned) -> None:
    again = [
        stage
        for stage, output in one.outputs.items()
        if output in seen and _digest(one.paths.folder(stage)) != seen[output]
    ]
    if again:
        raise RuntimeError(
            f"member {one.name} made {', '.join(again)} again, which {'was' if len(again) == 1 else 'were'} there: its "
            "run and the others no longer differ in its change alone"
        )


def refuse_failures(outcomes: list[Outcome], folder: Path) -> None:
    """Say which members failed, once everything else is done.

    Raises:
        MemberFailed: at least one did; one line with their reasons.
    """
    failed = [one for one in outcomes if one.state == "failed"]
    if failed:
        reasons = "; ".join(f"{one.planned.name}: {one.error.rstrip('.')}" for one in failed)
        raise MemberFailed(
            f"{len(failed)} of {len(outcomes)} members failed: {reasons}; the same command repeats these alone, the "
            f"others are in {folder}"
        )
