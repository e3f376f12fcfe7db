"""Going on with a run by its name, for a flow that runs a later part of it, maybe on another machine."""

from __future__ import annotations

from pathlib import Path

from tripletune.config import RunConfig, StoreConfig
from tripletune.config.presets import parse_config
from tripletune.errors import MissingArtifactError
from tripletune.pipeline.registry import STAGES, reusable_stages
from tripletune.pipeline.resolve import resolve
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, read_run

PARTS = tuple(dict.fromkeys(stage.part for stage in STAGES))
"""Parts of a run in the order in which they run."""


def go_on(name: str, part: str, store: StoreConfig, artifacts: Path) -> tuple[RunRecord, RunConfig, RunPaths]:
    """Settings and fingerprints of a run for one of its later parts.

    The settings are those that the run was started with. Fingerprints of the parts before are the recorded ones, so
    that no release or dump has to be here; those of this part and the later ones are computed from this machine's
    code, libraries and processor, as these make them.

    Args:
        name: of the run.
        part: the first of ``PARTS`` to compute fingerprints of.
        store: settings of the shared store on this machine, in place of the recorded ones.
        artifacts: the artifact root.

    Returns:
        The run's record, its settings, and where its stages read and write.

    Raises:
        UserError: there is no such run, its settings are of another version, or an input of a later part is missing.
    """
    record = read_run(artifacts, name, store=store)
    settings = parse_config(record.config, where=f"run {name}").model_copy(update={"store": store})
    before = PARTS[: PARTS.index(part)]
    earlier = [stage.name for stage in reusable_stages(settings) if stage.part in before]
    missing = [stage for stage in earlier if stage not in record.fingerprints]
    if missing:
        raise MissingArtifactError(f"run {name} has no {missing[0]!r}; an older version made it: run it again")
    given = {stage: record.fingerprints[stage] for stage in earlier}
    return record, settings, resolve(settings, artifacts, given)
