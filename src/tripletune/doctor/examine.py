"""All checks of a run, in the order in which a user would repair what they find."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tripletune.config import RunConfig
from tripletune.doctor import inputs, machine, model, servers
from tripletune.doctor.check import PARTS, Check, Part


def examine(settings: RunConfig, root: Path, parts: Collection[Part] = PARTS) -> list[Check]:
    """Check everything that a run of these settings needs on this machine, but the Prefect server that starts it.

    Nothing is trained, downloaded or written, and torch is not imported; a server that does not answer takes five
    seconds.

    Args:
        settings: of the run.
        root: the artifact root.
        parts: of the run, that this machine runs.
    """
    trains = bool({"finetune", "rank"} & set(parts))
    return [
        machine.check_python(),
        machine.check_libraries(settings),
        machine.check_disk(root, settings.dataset),
        machine.check_memory(root, settings.dataset),
        *([machine.check_gpus(settings)] if trains else []),
        servers.check_mlflow(settings.tracking, root),
        inputs.check_inputs(settings),
        inputs.check_licences(settings),
        model.check_model(settings.finetune, parts),
        machine.check_locale(),
        machine.check_clock(root),
    ]
