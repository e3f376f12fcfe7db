"""What a set will run: the settings and fingerprints of every member, resolved before anything starts.

Outputs are shared through fingerprints, so a member makes the stages that its change reaches and reuses all others:
those on the disk, and those that an earlier member makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tripletune.ablate.sets import BASE, AblationSet, Member
from tripletune.config import RunConfig
from tripletune.config.presets import load_config
from tripletune.errors import ConfigError, UserError
from tripletune.evaluate.metrics import measured_cutoffs, metric_names
from tripletune.pipeline.resolve import resolve
from tripletune.pipeline.stages import require_one_answer
from tripletune.store.fingerprint import sha256_json
from tripletune.store.paths import RunPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One member, or the base, ready to run."""

    name: str
    why: str
    changes: tuple[str, ...]
    """What it sets apart from the base."""
    overrides: tuple[str, ...]
    """All that is set in place of the preset's settings: on the command line, by the set, by the member."""
    row: str
    """Row that is compared; empty: what the run serves."""
    settings: RunConfig
    paths: RunPaths

    @property
    def outputs(self) -> dict[str, tuple[str, str]]:
        """Stage and fingerprint of each of its outputs, by stage."""
        return {stage: (stage, fingerprint) for stage, fingerprint in self.paths.fingerprints.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A set with everything that running it takes."""

    name: str
    """The set's: its file's name."""
    id: str
    """Name and digest of base settings and members: a set that is run again goes on where it was, a changed one does
    not."""
    why: str
    config: Path
    metrics: tuple[str, ...]
    members: tuple[Planned, ...]
    """The base first."""

    @property
    def base(self) -> Planned:
        """The unchanged run."""
        return self.members[0]

    @property
    def folder(self) -> Path:
        """Where the results are written."""
        return self.base.paths.root / self.base.settings.dataset / "ablations" / self.id


def plan_set(
    found: AblationSet,
    name: str,
    config: Path,
    artifacts: Path,
    *,
    movielens: str = "",
    imdb: str = "",
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Plan:
    """Resolve the base and every member.

    Args:
        found, name: the set, and its name.
        config: the base preset.
        artifacts: the artifact root.
        movielens, imdb: in place of the preset's, where not empty.
        overrides: settings of the base and all members, over the set's own.
        only: names of the members to run; none: all.

    Raises:
        UserError: settings or inputs of the base are wrong; or of a member, and then the line begins with its name.
        ConfigError: a member changes nothing, or the dataset, or a member or a metric that is named does not exist.
    """
    chosen = _chosen(found, name, only)

    def planned(member: Member) -> Planned:
        given = (*found.set, *overrides, *member.set)
        settings = load_config(config, given, movielens=movielens, imdb=imdb)
        require_one_answer(settings)
        return Planned(
            name=member.name,
            why=member.why,
            changes=member.set,
            overrides=given,
            row=member.row or found.row,
            settings=settings,
            paths=resolve(settings, artifacts),
        )

    base = planned(Member.model_construct(name=BASE, why="the unchanged run", set=(), row=""))
    _refuse_unmeasured(found.metrics, base)
    members = [base]
    for member in chosen:
        try:
            one = planned(member)
            _refuse_unmeasured(found.metrics, one)
        except UserError as error:
            raise type(error)(f"member {member.name}: {error}") from None
        _refuse_useless(one, base)
        members.append(one)
    of_all = {"base": base.settings.flat(), "members": [[one.name, one.row, *one.changes] for one in members]}
    return Plan(
        name=name,
        id=f"{name}-{sha256_json(of_all)[:8]}",
        why=found.why,
        config=config,
        metrics=found.metrics,
        members=tuple(members),
    )


def _chosen(found: AblationSet, name: str, only: Sequence[str]) -> list[Member]:
    """Members of the given names, in the set's order; all where none is given."""
    unknown = [one for one in only if one not in [member.name for member in found.member]]
    if unknown:
        raise ConfigError(f"--member {unknown[0]!r}: set {name} has {', '.join(one.name for one in found.member)}")
    return [member for member in found.member if not only or member.name in only]


def _refuse_unmeasured(metrics: Sequence[str], one: Planned) -> None:
    """Metrics are read at the end; one that a run does not measure should not show after hours."""
    known = metric_names(measured_cutoffs(one.settings.evaluate.rerank_cutoffs))
    unknown = [name for name in metrics if name not in known]
    if unknown:
        raise ConfigError(f"metrics names {unknown[0]!r}, which is not measured; there are {', '.join(known)}")


def _refuse_useless(one: Planned, base: Planned) -> None:
    if one.settings.dataset != base.settings.dataset:
        raise ConfigError(f"member {one.name} sets dataset; members share the base's outputs, which lie in its folder")
    if one.paths.fingerprints == base.paths.fingerprints and one.row == base.row:
        raise ConfigError(f"member {one.name} changes no output of the base ({', '.join(one.changes) or 'set = []'})")


def stages_of(plan: Plan) -> list[dict[str, str]]:
    """Of each member, what becomes of each stage: ``reuse`` (it is there), ``make``, or the name of the member before
    it that makes it."""
    made: dict[tuple[str, str], str] = {}
    rows = []
    for one in plan.members:
        row = {}
        for stage, output in one.outputs.items():
            is_there = one.paths.is_here(stage) or one.paths.is_shared(stage)
            row[stage] = made.get(output) or ("reuse" if is_there else "make")
            if row[stage] == "make":
                made[output] = one.name
        rows.append(row)
    return rows
